from .allocator import keep_freed_memory as keep_freed_memory
from .chat import ChatFormat as ChatFormat
from .chat import Spans as Spans
from .chat import Tokens as Tokens
from .load import load_model as load_model
from .model import HookedChatModel as HookedChatModel
