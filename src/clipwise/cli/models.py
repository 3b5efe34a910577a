"""``clipwise models``"""
