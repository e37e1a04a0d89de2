"""Images and videos in, expressions out.

- `recognizer`: `fercli.Recognizer`, a trained model, ready for use;
- `test_time`: a model that adapts to the faces it receives;
- `run`: `fercli predict`, from inputs to outputs;
- `inputs`: images, folders, globs, videos, cameras, lists;
- `videos`: video files, frame by frame;
- `cameras`: cameras, frame by frame;
- `stream`: workers find faces while the network predicts;
- `faces`: what a worker does with one image;
- `tracking`: follows each face from frame to frame;
- `results`: JSON lines, CSV, annotated copies;
- `drawing`: predictions drawn on an image;
- `video_writer`: annotated videos;
- `writing`: the output files of a run, moved into place at its end;
- `resume`: where a stopped run resumes;
- `totals`: the counts of a run.
"""
