"""A new machine in the place of a controller that died: clusters forget the old one, take the new one in."""
