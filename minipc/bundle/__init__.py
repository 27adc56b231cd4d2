"""The break-glass bundle: one sealed file, kept off the box, with everything a rebuild needs besides a clean clone.

minipc bundle create FILE     minipc bundle open FILE     minipc bundle check
"""
