"""Building blocks shared by the whole family: layers, positions, attention, transformer, backbone."""
