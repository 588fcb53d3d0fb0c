"""The axes of the flow laboratory: one file per axis, one small class per published method.

A method is added by one class, decorated with :func:`flowpolicy.flows.axes.registry.register`, in any file of this
folder: the command line, the refusals, the configuration files and the citations find it there.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
