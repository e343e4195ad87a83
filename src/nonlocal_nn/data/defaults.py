"""How pixels are normalised where nothing else is said; no import, so that every part can read it.

>>> round((255 - MEAN) / STD, 4)  # a white pixel
2.4444
"""

MEAN = 114.75  # of RGB in 0 .. 255: the authors' released code
STD = 57.375  # in the same units
