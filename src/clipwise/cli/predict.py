"""``clipwise predict``"""
