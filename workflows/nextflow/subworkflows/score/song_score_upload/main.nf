//
// Register analyses from payloads, upload their files, and publish them
//

include { SONG_SUBMIT  } from '../../../modules/score/song/submit/main'
include { SCORE_UPLOAD } from '../../../modules/score/score/upload/main'
include { SONG_PUBLISH } from '../../../modules/score/song/publish/main'

workflow SONG_SCORE_UPLOAD {
    take:
    payload_files // channel: [ val(meta), path(payload), [ path(file), ... ] ]

    main:
    SONG_SUBMIT(payload_files)
    SCORE_UPLOAD(SONG_SUBMIT.out.manifest_upload)
    SONG_PUBLISH(SCORE_UPLOAD.out.ready_to_publish)

    emit:
    analysis_id = SONG_PUBLISH.out.analysis_id // channel: [ val(meta), val(analysis_id) ]
    report = SCORE_UPLOAD.out.report // channel: [ val(meta), path(json) ]
    versions = channel.empty() // for callers that mix it: versions are on the topic of that name
}
