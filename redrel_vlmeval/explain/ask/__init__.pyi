from . import questions as questions
from .asking import Asked as Asked, answer_ids as answer_ids, ask_host as ask_host, ask_model as ask_model
from .questions import Item as Item, tokens_on as tokens_on
from .spans import GROUPS as GROUPS, as_paper as as_paper, check_greedy as check_greedy
