"""Pure tensor functions, one equation each: no modules, no configuration, no state."""
