"""Random changes of a training patch that move image and label alike and can never interpolate a label.

`settings` says what may happen, `moves` draws one change of shape, `sampling` carries it out, `intensity` changes
values, `augmentation` puts them together. Intensities see the image alone, and a label is only ever indexed, cropped
and mirrored, so there is no interpolation mode that somebody could forget to set. `monai_list` and `monai_steps` add
transforms of MONAI, with nearest forced on labels.
"""
