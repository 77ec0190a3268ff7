from .identities import certify as certify
from .records import Certificate as Certificate
from .records import Identity as Identity
