"""`perdure doctor`: looks at everything that a platform stands on, and says of each fault how it is mended.

Nothing is changed by it. Each module looks at one thing; `examine` puts their findings together.
"""

from perdure.doctor.examine import examine
from perdure.doctor.findings import Finding

__all__ = ["Finding", "examine"]
