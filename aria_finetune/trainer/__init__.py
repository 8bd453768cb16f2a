"""TRL's SFTTrainer, made so that a run can be stopped, killed and resumed, and made for Aria."""

from aria_finetune.trainer.answers import AnswerCheck, choose_questions
from aria_finetune.trainer.aria import AriaTrainer, Feed, Watching
from aria_finetune.trainer.callbacks import EarlyStopping
from aria_finetune.trainer.guards import NumberGuard
from aria_finetune.trainer.loader import SkippedRows
from aria_finetune.trainer.resumable import Keeping
from aria_finetune.trainer.routing import RoutingAccount

__all__ = [
    "AnswerCheck",
    "AriaTrainer",
    "EarlyStopping",
    "Feed",
    "Keeping",
    "NumberGuard",
    "RoutingAccount",
    "SkippedRows",
    "Watching",
    "choose_questions",
]
