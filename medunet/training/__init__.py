"""Training: what stands around the loop of `medunet.train_network`, from a checked config to the report of the run.

The stories are `medunet.train_network` and `medunet.crossvalidate`. Training may use planning, prediction and
evaluation: validation is prediction plus scoring. Nobody but these stories and the demo uses it.

From top to bottom: folds, pipeline, epochs, session, finish, material, setup, tensorboard_text, checks, run_folder,
timetable, validation, warm_start.
"""
