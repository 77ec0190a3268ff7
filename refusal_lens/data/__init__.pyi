from . import organism as organism
from .prompts import Prompts as Prompts
from .prompts import PromptSet as PromptSet
from .suffixes import Suffix as Suffix
from .suffixes import SuffixSet as SuffixSet
