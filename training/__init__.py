"""How the bundled backbone is made: network, data, recipe, export."""
