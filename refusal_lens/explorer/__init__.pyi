from .reading import look as look
from .records import Look as Look
from .starting import explore as explore
