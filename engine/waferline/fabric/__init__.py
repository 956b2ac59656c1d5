"""Where weights live: cores and their memory levels, placement, residency."""
