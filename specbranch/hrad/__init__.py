"""Training of H-RAD: examples from the pair itself, a small MLP, and what it is worth.

``settings.py`` what to do, ``collect.py`` examples, ``fit.py`` the MLP, ``evaluate.py`` accuracy
next to two references, ``train.py`` the whole of it. The trained predictor is ``predictor.HRad``.
"""
