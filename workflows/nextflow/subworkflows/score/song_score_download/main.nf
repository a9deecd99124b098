//
// Download all files of analyses, each with its metadata
//

include { SONG_GET       } from '../../../modules/score/song/get/main'
include { SCORE_DOWNLOAD } from '../../../modules/score/score/download/main'

workflow SONG_SCORE_DOWNLOAD {
    take:
    study_analysis // channel: [ val(study_id), val(analysis_id) ]

    main:
    SONG_GET(study_analysis)
    SCORE_DOWNLOAD(SONG_GET.out.analysis_json)

    emit:
    analysis_json = SONG_GET.out.json // channel: path(json)
    files = SCORE_DOWNLOAD.out.files // channel: [ path(file), ... ]
    analysis_files = SCORE_DOWNLOAD.out.analysis_files // channel: [ path(json), [ path(file), ... ] ]
    report = SCORE_DOWNLOAD.out.report // channel: path(json)
    versions = channel.empty() // for callers that mix it: versions are on the topic of that name
}
