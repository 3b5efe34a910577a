"""``clipwise data``"""
