#!/usr/bin/env nextflow

//
// Rows of a samplesheet: one with an analysis_id is downloaded, one with a payload is submitted, uploaded and published
//

include { samplesheetToList   } from 'plugin/nf-schema'
include { validateParameters  } from 'plugin/nf-schema'
include { SONG_SCORE_DOWNLOAD } from './subworkflows/score/song_score_download/main'
include { SONG_SCORE_UPLOAD   } from './subworkflows/score/song_score_upload/main'

workflow {
    validateParameters()
    def rows = channel.fromList(samplesheetToList(params.input, "${projectDir}/assets/schema_input.json"))

    SONG_SCORE_DOWNLOAD(
        rows
            .filter { _meta, analysis_id, _payload, _folder -> analysis_id }
            .map { meta, analysis_id, _payload, _folder -> tuple(meta.study_id, analysis_id) }
    )

    SONG_SCORE_UPLOAD(
        rows
            .filter { _meta, _analysis_id, payload, _folder -> payload }
            .map { meta, _analysis_id, payload, folder -> tuple(meta, payload, files("${folder}/*")) }
    )
}
