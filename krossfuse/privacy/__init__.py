"""Privacy and compression of one vector a client and round: mechanisms, quantisers, coders, accountants.

Pure: arrays, an explicit key, bytes. It knows nothing of training, configuration or networks.
"""

from krossfuse.privacy.accountant import Accountant, PrivacyWarning, record_rate
from krossfuse.privacy.calibration import clips_for_budgets, noise_multiplier_for, sigma_for, sigmas_for_budgets
from krossfuse.privacy.clipping import clip
from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Lattice, find_lattice, lattices
from krossfuse.privacy.ledger import Ledger
from krossfuse.privacy.mechanism import Mechanism
from krossfuse.privacy.mechanisms import MECHANISMS, make_mechanism
from krossfuse.privacy.messages import MessageError
from krossfuse.privacy.quantizer import Quantiser
from krossfuse.privacy.statement import privacy_statement

__all__ = [
    "MECHANISMS",
    "Accountant",
    "Key",
    "Lattice",
    "Ledger",
    "Mechanism",
    "MessageError",
    "PrivacyWarning",
    "Quantiser",
    "clip",
    "clips_for_budgets",
    "find_lattice",
    "lattices",
    "make_mechanism",
    "noise_multiplier_for",
    "privacy_statement",
    "record_rate",
    "sigma_for",
    "sigmas_for_budgets",
]
