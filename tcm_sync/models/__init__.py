"""Model files: analyse ONNX models, write their config.pbtxt, and make inputs to try them with."""

from tcm_sync.models.analysis import ModelAnalysis, analyze
from tcm_sync.models.batch import FirstAxis
from tcm_sync.models.config import config_pbtxt
from tcm_sync.models.sample import sample_inputs

__all__ = ["FirstAxis", "ModelAnalysis", "analyze", "config_pbtxt", "sample_inputs"]
