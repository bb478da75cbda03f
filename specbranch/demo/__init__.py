"""The demo pair: its training scripts, weights and model card."""
