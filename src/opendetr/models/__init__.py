"""The members of the family, one file each."""
