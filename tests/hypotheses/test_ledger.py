from __future__ import annotations

import copy
import json

import evidence
import pytest
import yaml

from mlinterp.errors import SpecError
from mlinterp.hypotheses.ledger import Ledger
from mlinterp.hypotheses.records import Declaration


def tags(ledger, run_id):
    return ledger.store.client.get_run(run_id).data.tags


def note(ledger, run_id):
    return tags(ledger, run_id)["mlflow.note.content"]


def claim(text="something is the case here", **more):
    return Declaration(claim=text, **more)


def test_a_new_hypothesis_is_proposed_at_its_prior_and_has_a_page(ledger):
    made = ledger.add(claim("z_H holds the answer", prediction="agreement above chance", confidence=0.3))
    assert (made.id, made.status, made.evaluation.confidence) == ("h001", "proposed", 0.3)
    page = ledger.store.client.get_run(made.run_id)
    assert page.info.status == "FINISHED"
    assert page.info.run_name == "h001 · z_H holds the answer"
    assert page.data.metrics["hypothesis/confidence"] == 0.3
    assert {name: page.data.tags[f"mlinterp.{name}"] for name in ("kind", "hypothesis", "status", "claim")} == {
        "kind": "hypothesis",
        "hypothesis": "h001",
        "status": "proposed",
        "claim": "z_H holds the answer",
    }
    assert "**h001: z\\_H holds the answer**" in note(ledger, made.run_id)
    assert "predicted: agreement above chance" in note(ledger, made.run_id)


def test_ids_follow_each_other_and_skip_what_the_file_reserves(tmp_path, template):
    (tmp_path / "mlruns.db").write_bytes(template.read_bytes())
    project = evidence.project(tmp_path, hypotheses={"h007": {"claim": "declared in the file itself"}})
    ledger = Ledger.open(project)
    assert [ledger.add(claim()).id, ledger.add(claim()).id] == ["h008", "h009"]
    assert [one.id for one in ledger.all()] == ["h007", "h008", "h009"]


def test_a_supporting_run_moves_status_and_confidence_and_both_pages_say_so(session, ledger, h001):
    run = evidence.run(session, h001, evidence.FOR, name="a run")
    found = ledger.get(h001)
    assert (found.status, len(found.evaluation.rulings)) == ("supported", 1)
    assert found.evaluation.confidence > 0.9
    own, page = tags(ledger, run), tags(ledger, found.run_id)
    assert (own["mlinterp.verdict"], own["mlinterp.standing"]) == ("supports", "counted")
    assert (page["mlinterp.status"], page["mlinterp.evidence"]) == ("supported", "1 for")
    assert "m/x" in own["mlinterp.ruling"]
    history = ledger.store.client.get_metric_history(found.run_id, "hypothesis/confidence")
    assert [(point.step, point.value) for point in history] == [(0, 0.5), (1, found.evaluation.confidence)]
    assert f"[a run](#/experiments/{ledger.experiment_id}/runs/{run}?workflowType=machine_learning)" in note(ledger, found.run_id)
    assert f"- hypothesis: [h001](#/experiments/{ledger.experiment_id}/runs/{found.run_id}?" in note(ledger, run)
    overview = ledger.store.client.get_experiment(ledger.experiment_id).tags["mlflow.note.content"]
    assert "| supported |" in overview


@pytest.mark.parametrize(
    ("numbers", "verdict", "status"),
    [(evidence.FOR, "supports", "supported"), (evidence.AGAINST, "refutes", "refuted"), (evidence.UNDECIDED, "inconclusive", "testing")],
)
def test_the_verdict_follows_from_interval_and_null(session, ledger, h001, numbers, verdict, status):
    run = evidence.run(session, h001, numbers)
    assert tags(ledger, run)["mlinterp.verdict"] == verdict
    assert ledger.get(h001).status == status


def test_a_run_under_an_unknown_hypothesis_is_refused_with_the_nearest(session, h001):
    with pytest.raises(SpecError, match="did you mean 'h001'"):
        evidence.run(session, "h0011")


def test_a_superseded_or_closed_hypothesis_takes_no_evidence(session, ledger, h001):
    other = ledger.add(claim())
    child = ledger.supersede(h001, claim("only the last evaluation holds it"))
    ledger.close(other.id, "nobody asks any more")
    with pytest.raises(SpecError, match=f"was superseded; use {child.id}"):
        evidence.run(session, h001)
    with pytest.raises(SpecError, match="is closed: nobody asks any more"):
        evidence.run(session, other.id)
    assert ledger.reopen(other.id).closed is None
    evidence.run(session, other.id)


def test_a_superseding_child_is_nested_below_its_parent_takes_its_tags_and_not_its_evidence(session, ledger):
    parent = ledger.add(claim(tags=["recursion"]))
    evidence.run(session, parent.id)
    child = ledger.supersede(parent.id, claim("a narrower claim than before"))
    parent = ledger.get(parent.id)
    assert (parent.status, parent.superseded_by, parent.children) == ("superseded", child.id, (child.id,))
    assert (child.status, child.declared.parent, child.declared.tags) == ("proposed", parent.id, ["recursion"])
    assert tags(ledger, child.run_id)["mlflow.parentRunId"] == parent.run_id
    assert f"superseded by: [{child.id}](" in note(ledger, parent.run_id)
    assert f"parent: [{parent.id}](" in note(ledger, child.run_id)


def test_retracting_a_run_flips_the_verdict_and_restoring_it_brings_it_back(session, ledger, h001):
    evidence.run(session, h001, evidence.FOR)
    against = evidence.run(session, h001, evidence.AGAINST)
    assert ledger.get(h001).status == "testing"
    ledger.retract(against, "the wrong split was used")
    assert ledger.get(h001).status == "supported"
    assert tags(ledger, ledger.get(h001).run_id)["mlinterp.status"] == "supported"
    assert tags(ledger, against)["mlinterp.standing"] == "retracted"
    assert "the wrong split was used" in note(ledger, ledger.get(h001).run_id)
    ledger.restore(against)
    assert ledger.get(h001).status == "testing"
    assert tags(ledger, against)["mlinterp.standing"] == "counted"
    history = ledger.store.client.get_metric_history(ledger.get(h001).run_id, "hypothesis/confidence")
    assert [point.step for point in history] == [0, 1, 2, 3, 4]
    with pytest.raises(SpecError, match="was not retracted"):
        ledger.restore(against)


def test_all_that_rests_on_a_retracted_run_is_stale_at_any_distance_and_the_query_finds_it(session, ledger, h001):
    sae = evidence.run(session, None, name="the sae", produces="sae")
    middle = evidence.run(session, None, name="middle", upstream=[sae])
    last = evidence.run(session, h001, name="last", upstream=[middle])
    stale = ledger.retract(sae, "fitted on the test split", replaced_by=evidence.run(session, None))
    assert {item.run_id for item in stale} == {middle, last}
    assert (ledger.get(h001).status, tags(ledger, last)["mlinterp.standing"]) == ("proposed", "stale")
    assert "rests on 'middle'" in tags(ledger, last)["mlinterp.stale"]
    assert "was retracted: fitted on the test split" in tags(ledger, last)["mlinterp.stale"]
    for item in stale:
        found = ledger.store.client.search_runs([ledger.experiment_id], item.query)
        assert item.run_id in {run.info.run_id for run in found}
    marked = ledger.store.client.search_runs([ledger.experiment_id], "tags.`mlinterp.stale` != ''")
    assert {run.info.run_id for run in marked} == {middle, last}
    assert ledger.restore(sae) == []
    assert (ledger.get(h001).status, "mlinterp.stale" in tags(ledger, last)) == ("supported", False)


def test_a_run_deleted_in_the_ui_takes_its_evidence_and_what_rests_on_it_with_it(session, ledger, h001):
    trace = evidence.run(session, None, produces="trace")
    evidence.run(session, h001, upstream=[trace])
    alone = evidence.run(session, h001, evidence.AGAINST)
    ledger.store.client.delete_run(trace)
    assert ledger.get(h001).status == "refuted"
    ledger.store.client.delete_run(alone)
    assert ledger.get(h001).status == "proposed"
    stale = ledger.stale()
    assert tags(ledger, ledger.get(h001).run_id)["mlinterp.status"] == "proposed"
    assert [item.why for item in stale] == [f"rests on 'run' ({trace[:12]}), which was deleted"]


def test_deleting_a_run_gives_back_none_of_the_error_rate_that_its_test_has_used(session, ledger, h001):
    first = evidence.run(session, h001, evidence.UNDECIDED)
    evidence.run(session, h001)
    judged_at = [test[3] for ruling in ledger.get(h001).evaluation.rulings for test in ruling.tests]
    ledger.store.client.delete_run(first)
    rulings = ledger.get(h001).evaluation.rulings
    assert [ruling.evidence.standing for ruling in rulings] == ["deleted", "counted"]
    assert [test[3] for ruling in rulings for test in ruling.tests] == judged_at


def test_a_question_whose_answer_was_retracted_may_be_answered_again(session, ledger, h001):
    ledger.retract(evidence.run(session, h001, run_key="same"), "the machine was faulty")
    evidence.run(session, h001, run_key="same")
    assert [ruling.evidence.standing for ruling in ledger.get(h001).evaluation.rulings] == ["retracted", "counted"]


def test_a_retracted_study_takes_its_steps_with_it(session, ledger, h001):
    study = evidence.run(session, None, kind="study")
    evidence.run(session, h001, parent=study)
    ledger.retract(study, "trained on the test split")
    assert ledger.get(h001).evaluation.rulings[0].evidence.standing == "retracted"


def test_a_study_rests_on_its_steps(session, ledger, h001):
    study = evidence.run(session, h001, kind="study")
    step = evidence.run(session, None, parent=study)
    ledger.store.client.delete_run(step)
    ruling = ledger.get(h001).evaluation.rulings[0]
    assert (ruling.evidence.standing, ledger.get(h001).status) == ("stale", "proposed")


def test_the_same_question_answered_again_is_no_second_piece_of_evidence(session, ledger, h001):
    evidence.run(session, h001, run_key="same")
    before = ledger.get(h001).evaluation.confidence
    evidence.run(session, h001, run_key="same")
    assert [ruling.evidence.standing for ruling in ledger.get(h001).evaluation.rulings] == ["counted", "duplicate"]
    assert ledger.get(h001).evaluation.confidence == before


def test_a_prediction_that_was_not_recorded_before_the_result_does_not_count(session, ledger, h001):
    run = evidence.run(session, h001)
    altered = json.loads(tags(ledger, run)["mlinterp.judgements"]) | {"prediction": "0" * 64}
    ledger.store.client.set_tag(run, "mlinterp.judgements", json.dumps(altered))
    ruling = ledger.get(h001).evaluation.rulings[0]
    assert (ruling.evidence.standing, ledger.get(h001).status) == ("unregistered", "proposed")


def test_a_prediction_stands_before_the_first_number_and_cannot_be_changed(session, ledger, h001):
    run = ledger.store.client.get_run(evidence.run(session, h001))
    assert len(run.data.params["prediction.sha256"]) == 64
    first = ledger.store.client.get_metric_history(run.info.run_id, "m/x")[0].timestamp
    assert run.info.start_time <= first <= int(run.data.tags["mlinterp.judged_at"])
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        ledger.store.client.log_param(run.info.run_id, "prediction.sha256", "0" * 64)


def test_a_declaration_may_change_until_there_is_evidence(tmp_path, template):
    (tmp_path / "mlruns.db").write_bytes(template.read_bytes())
    project = evidence.project(tmp_path, hypotheses={"h001": {"claim": "the first wording of it"}})
    path = project.root / "hypotheses.yaml"
    assert Ledger.open(project).get("h001").declared.claim == "the first wording of it"
    path.write_text(yaml.safe_dump({"h001": {"claim": "the second wording of it"}}))
    assert Ledger.open(project).get("h001").declared.claim == "the second wording of it"
    evidence.run(evidence.session(project), "h001")
    path.write_text(yaml.safe_dump({"h001": {"claim": "the second wording of it", "tags": ["kept"]}}))
    assert Ledger.open(project).get("h001").declared.tags == ["kept"]
    path.write_text(yaml.safe_dump({"h001": {"claim": "the third wording, afterwards"}}))
    with pytest.raises(SpecError, match=r"hypotheses.yaml:1: h001: claim, tags changed after there was evidence"):
        Ledger.open(project)


def test_an_id_in_the_file_that_another_claim_has_is_refused(session, ledger, h001):
    (session.project.root / "hypotheses.yaml").write_text(yaml.safe_dump({h001: {"claim": "quite another claim"}}))
    evidence.run(session, h001)
    with pytest.raises(SpecError, match="claim changed after there was evidence"):
        Ledger.open(session.project)


def test_a_claim_full_of_markup_stays_text(ledger):
    made = ledger.add(claim("<script>alert(1)</script> [x](javascript:alert(1)) | `a` **b** http://evil.example"))
    text = note(ledger, made.run_id)
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "[x](" not in text.replace("\\[x\\](", "")
    assert "http://" not in text.replace("`http://evil.example`", "")


def test_people_keep_what_they_wrote_above_the_table_of_hypotheses(ledger):
    client, experiment = ledger.store.client, ledger.experiment_id
    client.set_experiment_tag(experiment, "mlflow.note.content", "**Maze**\n\nour prose")
    ledger.add(claim())
    ledger.add(claim())
    text = client.get_experiment(experiment).tags["mlflow.note.content"]
    assert text.startswith("**Maze**\n\nour prose\n\n#### Hypotheses")
    assert text.count("#### Hypotheses") == 1


def test_a_file_is_kept_with_a_hypothesis(ledger, h001, tmp_path):
    (tmp_path / "state.json").write_text("{}")
    assert ledger.attached(h001, "state.json", tmp_path) is None
    ledger.attach(h001, tmp_path / "state.json")
    (tmp_path / "got").mkdir()
    assert ledger.attached(h001, "state.json", tmp_path / "got").read_text() == "{}"


def test_a_tie_between_claims_of_one_id_is_settled_for_the_smaller_run(ledger, h001):
    from mlinterp.hypotheses import claims
    from mlinterp.tracking.life import opened_page

    store, experiment = ledger.store, ledger.experiment_id
    pages = sorted(opened_page(store, experiment, "x", {"mlinterp.kind": "hypothesis"}) for _ in range(2))
    store.client.set_tag(pages[0], claims.CLAIM, "h002")
    assert claims.settle(store, experiment, pages[1], None, "h002") is None
    assert claims.settle(store, experiment, pages[1], lambda: claims.next_free(store, experiment, {}), "h002") == "h003"
    assert claims.settle(store, experiment, pages[0], None, "h002") == "h002"
    assert claims.settle(store, experiment, opened_page(store, experiment, "y", {}), None, h001) is None


def test_the_same_numbers_from_changed_code_are_no_second_piece_of_evidence(session, ledger, h001):
    first = evidence.run(session, h001)
    again = evidence.run(session, h001)
    ledger.store.client.set_tag(again, "mlinterp.judgements", tags(ledger, first)["mlinterp.judgements"])
    assert [ruling.evidence.standing for ruling in ledger.get(h001).evaluation.rulings] == ["counted", "duplicate"]


def test_the_same_numbers_from_another_model_are_evidence_of_their_own(session, ledger, h001):
    from mlinterp.tracking.recorder import Recorder

    runs = [evidence.run(session, h001) for _ in range(3)]
    for run, digest in zip(runs, ("a" * 64, "b" * 64, "a" * 64), strict=True):
        ledger.store.client.set_tag(run, "mlinterp.judgements", tags(ledger, runs[0])["mlinterp.judgements"])
        Recorder(ledger.store.client, run).dataset_input("subject", digest, "subject", {"uri": "runs:/x"})
    assert [ruling.evidence.standing for ruling in ledger.get(h001).evaluation.rulings] == ["counted", "counted", "duplicate"]


def test_what_is_below_a_stale_step_or_reuses_an_earlier_run_is_stale_too(session, ledger, h001):
    sae = evidence.run(session, None)
    study = evidence.run(session, h001, kind="study")
    evidence.run(session, None, parent=study, upstream=[sae])
    reusing = evidence.run(session, h001, kind="study")
    reused = evidence.run(session, None, part_of=reusing)
    assert {ruling.evidence.standing for ruling in ledger.get(h001).evaluation.rulings} == {"counted"}
    ledger.retract(sae, "wrong")
    ledger.store.client.delete_run(reused)
    assert {ruling.evidence.run_id: ruling.evidence.standing for ruling in ledger.get(h001).evaluation.rulings} == {
        study: "stale",
        reusing: "stale",
    }


def test_a_failed_cell_in_the_bin_takes_nothing_with_it(session, ledger, h001):
    sweep = evidence.run(session, h001, kind="sweep")
    failed = ledger.store.client.create_run(ledger.experiment_id, tags={"mlflow.parentRunId": sweep, "mlinterp.kind": "sae_fit"})
    ledger.store.client.set_terminated(failed.info.run_id, "FAILED")
    ledger.store.client.delete_run(failed.info.run_id)
    assert ledger.get(h001).status == "supported"


def test_a_retraction_reaches_what_another_project_rests_on(session, ledger, h001, tmp_path):
    other = evidence.session(evidence.project(tmp_path, "other"))
    theirs = other.ledger.add(claim("a claim of another project")).id
    sae = evidence.run(session, None)
    evidence.run(other, theirs, upstream=[sae])
    stale = ledger.retract(sae, "wrong")
    assert len(stale) == 1
    page = other.ledger.get(theirs)
    assert (page.status, tags(ledger, page.run_id)["mlinterp.status"]) == ("proposed", "proposed")


def test_one_damaged_run_leaves_the_others_readable(session, ledger, h001):
    damaged, circular = evidence.run(session, h001), evidence.run(session, h001)
    evidence.run(session, h001)
    ledger.store.client.set_tag(damaged, "mlinterp.judgements", "{")
    ledger.store.client.set_tag(circular, "mlinterp.upstream", circular)
    assert [ruling.evidence.standing for ruling in ledger.get(h001).evaluation.rulings] == ["unregistered", "counted", "counted"]
    assert ledger.stale() == []


def test_a_long_prediction_is_kept_whole(session, ledger, h001):
    names = [f"m/{'x' * 200}{number}" for number in range(16)]
    run = evidence.run(session, h001, expect=[{"metric": name, "op": ">", "value": 0} for name in names] + [])
    assert tags(ledger, run)["mlinterp.judgements"].startswith(("{", "deflate;"))
    assert [item.metric for item in ledger.get(h001).evaluation.rulings[0].evidence.judgements] == names


def test_a_run_that_nobody_ruled_on_is_ruled_on_when_its_answer_is_used_again(session, ledger, h001):
    from mlinterp.execution.verdict import rule_late

    run = evidence.run(session, h001)
    ledger.store.client.delete_tag(run, "mlinterp.verdict")
    assert rule_late(ledger.store.client.get_run(run), session).data.tags["mlinterp.verdict"] == "supports"


def test_a_claim_that_died_half_way_blocks_nobody(ledger, h001):
    from mlinterp.hypotheses import claims
    from mlinterp.tracking.life import opened_page

    dead = opened_page(ledger.store, ledger.experiment_id, "x", {"mlinterp.kind": "hypothesis"})
    ledger.store.client.set_tag(dead, claims.CLAIM, "h002")
    assert ledger.add(claim(), id="h002").id == "h002"


def test_superseding_again_after_a_stop_half_way_makes_no_second_child(ledger, h001):
    wanted = claim("a narrower claim than before")
    child = ledger.supersede(h001, wanted)
    ledger.store.client.delete_tag(ledger.get(h001).run_id, "mlinterp.superseded_by")
    assert ledger.supersede(h001, wanted).id == child.id
    assert len(ledger.all()) == 2


@pytest.mark.parametrize("why", ["", "  ", "x" * 2001])
def test_a_reason_is_given_and_short_enough_to_be_kept(session, ledger, h001, why):
    run = evidence.run(session, h001)
    for refused in (lambda: ledger.retract(run, why), lambda: ledger.close(h001, why)):
        with pytest.raises(SpecError, match="a reason of"):
            refused()


def test_a_page_is_not_retracted_and_nothing_twice_or_by_itself(session, ledger, h001):
    run = evidence.run(session, h001)
    with pytest.raises(SpecError, match="is the page of a hypothesis"):
        ledger.retract(ledger.get(h001).run_id, "why not")
    with pytest.raises(SpecError, match="cannot replace itself"):
        ledger.retract(run, "why not", replaced_by=run)
    ledger.retract(run, "the first reason")
    with pytest.raises(SpecError, match="was retracted already: the first reason"):
        ledger.retract(run, "the second reason")


def test_the_table_of_many_hypotheses_fits_the_note_and_says_how_many_are_left_out(ledger):
    from mlinterp.hypotheses import pages

    page = ledger.store.client.get_run(ledger.add(claim("c & " * 200)).run_id)
    many = [copy.deepcopy(page) for _ in range(400)]
    for number, one in enumerate(many):
        one.info._run_id = f"{number:032x}"
    text = pages.overview_markdown(many)
    assert len(text) < 20_000
    assert text.endswith("… and 350 more: `mlinterp hypothesis list`")
