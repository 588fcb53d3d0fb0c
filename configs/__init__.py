"""Named presets: values, no logic."""
