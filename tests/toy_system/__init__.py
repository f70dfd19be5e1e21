"""A toy system: the colour of a scene from its caption, added to the mean colour of all scenes,
which is its part.
"""

NAMES = {
    "ColourNet": "tests.toy_system.network",
    "MeanColour": "tests.toy_system.network",
    "MeanColourTask": "tests.toy_system.mean_colour",
    "ToyTask": "tests.toy_system.task",
    "ToyOptions": "tests.toy_system.options",
    "PairTask": "tests.toy_system.pair",
}
WEIGHTS = "tests.toy_system.weights"
