def demo() -> None:
    """TBD"""
