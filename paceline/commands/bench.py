def bench() -> None:
    """TBD"""
