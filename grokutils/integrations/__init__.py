"""Callbacks for other people's trainers. Each imports its library, which this package does not install:
``pip install transformers accelerate`` or ``pip install lightning``."""
