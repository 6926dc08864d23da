def doctor() -> None:
    """TBD"""
