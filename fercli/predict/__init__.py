"""Images and videos in, expressions out.

- `recognizer`: `fercli.Recognizer`, a trained model for use;
- `test_time`: a model that adapts to the faces it answers;
- `run`: `fercli predict` from inputs to outputs;
- `inputs`: images, folders, globs, videos, cameras, lists;
- `videos`: video files frame by frame;
- `cameras`: cameras frame by frame;
- `stream`: workers find faces while the network answers;
- `faces`: what a worker does with one image;
- `tracking`: who is who from frame to frame;
- `results`: JSON lines, CSV, annotated copies;
- `drawing`: answers drawn over an image;
- `video_writer`: annotated videos;
- `writing`: the files of a run, moved into place at its end;
- `resume`: where a stopped run resumes;
- `totals`: what is counted.
"""
