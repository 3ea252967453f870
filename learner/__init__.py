"""The learner: turns feedback into LoRA adapters by self-distillation fine-tuning."""
