"""The axes of the flow laboratory: one file per axis, or a folder where it has outgrown one; a class per method.

A method is added by one class, decorated with :func:`flowpolicy.flows.axes.registry.register`, in any file below this
folder: the command line, the refusals, the configuration files and the citations find it there.
"""

from importlib import import_module
from pkgutil import walk_packages

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
