// The checks of edgeship_runtime/verify.py, in its order: files, size, token ids, logits. Templates are not rendered here.
#include "commands.h"
#include "engine.h"
#include "machine.h"

#include <algorithm>
#include <cmath>
#include <sys/stat.h>

static const double LOGIT_ERROR_STD = 0.5;  // edgeship_runtime/tolerances.py

namespace {

struct Findings {
    json size = nullptr, tokens = nullptr, agreement = nullptr, ties = json::array();
    std::vector<std::string> failures;
    int positions = 0, equal = 0, near = 0;
    double error = 0, error_std = 0;
    std::vector<double> kl;
    int float_equal = 0;
};

std::string fixed(double value, int digits) {
    char out[64];
    snprintf(out, sizeof out, "%.*f", digits, value);
    return out;
}

void check_size(const Manifest & manifest, Findings & found) {
    struct stat own;
    double total = stat((manifest.directory + "/edgeship.json").c_str(), &own) == 0 ? own.st_size : 0;
    for (const auto & [name, entry] : manifest.files) {
        total += entry.size;
    }
    const auto budget = manifest.size_budget_mb;
    found.size = {{"mb", rounded(total / 1e6, 3)}, {"budget_mb", budget ? json(*budget) : json(nullptr)}};
    if (budget && total / 1e6 > *budget) {
        found.failures.push_back("size: " + fixed(total / 1e6, 3) + " MB is more than the budget of " + fixed(*budget, 1) + " MB");
    }
}

void check_tokens(const Manifest & manifest, Findings & found) {
    const std::vector<ChatCase> cases = read_chats(manifest);
    const Model vocabulary(manifest.file(manifest.model_file), true);
    size_t equal = 0;
    for (const ChatCase & each : cases) {
        const std::vector<int32_t> ids = vocabulary.tokenize(each.rendered);
        if (ids == each.tokens || ids == each.others) {
            equal++;
        } else {
            found.failures.push_back("tokens: " + safe(each.name) + ": the token ids differ (by the vocabulary in " + manifest.model_file + ")");
        }
    }
    found.tokens = {{"cases", cases.size()}, {"equal", equal}};
}

// KL divergence in nats of logits from the float model's likeliest tokens and all others as one.
double divergence(const Position & place, const float * logits, int32_t vocab) {
    const double most = *std::max_element(logits, logits + vocab);
    double sum = 0;
    for (int32_t i = 0; i < vocab; i++) {
        sum += std::exp(logits[i] - most);
    }
    double total = 0, p_rest = 1, q_rest = 1;
    const auto add = [&](double p, double q) {
        p = std::max(p, 1e-30), q = std::max(q, 1e-30);
        total += p * std::log(p / q);
    };
    for (size_t i = 0; i < place.top_ids.size(); i++) {
        const double p = std::exp(place.top_logits[i]), q = std::exp(logits[place.top_ids[i]] - most) / sum;
        p_rest -= p, q_rest -= q;
        add(p, q);
    }
    add(p_rest, q_rest);
    return total;
}

void tie(Findings & found, const std::string & name, const Position & golden, int32_t chosen, json gap, bool tolerated) {
    found.ties.push_back({{"case", name}, {"index", golden.index}, {"expected", golden.top_ids[0]}, {"chosen", chosen},
                          {"gap_std", gap}, {"tolerated", tolerated}});
    found.near += tolerated;
}

void compare(Findings & found, const std::string & name, const Position & golden, const float * logits, int32_t vocab, double tolerance) {
    const std::string where = safe(name) + ", position " + std::to_string(golden.index) + ": ";
    found.positions++;
    if (!std::all_of(logits, logits + vocab, [](float each) { return std::isfinite(each); })) {
        found.failures.push_back("agreement: " + where + "the engine gave logits that are no numbers");
        tie(found, name, golden, -1, nullptr, false);
        return;
    }
    double error = 0;
    for (size_t i = 0; i < golden.top_ids.size(); i++) {
        error = std::max<double>(error, std::fabs(logits[golden.top_ids[i]] - static_cast<float>(golden.top_logits[i])));
    }
    const double in_std = golden.std > 0 ? error / golden.std : 0;
    found.error = std::max(found.error, error), found.error_std = std::max(found.error_std, in_std);
    if (in_std > LOGIT_ERROR_STD) {
        found.failures.push_back("agreement: " + where + "a logit is off by " + fixed(in_std, 2) + " deviations, more than " + fixed(LOGIT_ERROR_STD, 1));
    }
    const int32_t chosen = best_of(logits, vocab);
    if (chosen == golden.top_ids[0]) {
        found.equal++;
        return;
    }
    const auto place = std::find(golden.top_ids.begin(), golden.top_ids.end(), chosen);
    const bool known = place != golden.top_ids.end();
    const double behind = known ? golden.top_logits[0] - golden.top_logits[place - golden.top_ids.begin()] : 0;
    const double gap = golden.std > 0 ? behind / golden.std : 0;
    const bool tolerated = known && gap < tolerance;
    tie(found, name, golden, chosen, known ? json(gap) : json(nullptr), tolerated);
    if (!tolerated) {
        const std::string far = known ? fixed(gap, 3) + " deviations behind" : "not among the golden best";
        found.failures.push_back("agreement: " + where + "expected token " + std::to_string(golden.top_ids[0]) + ", found " +
                                 std::to_string(chosen) + ", " + far + " (tolerance " + fixed(tolerance, 2) + ")");
    }
}

const Position * position_of(const Golden & floats, const std::string & name, int32_t index) {
    for (const GoldenCase & each : floats.cases) {
        for (const Position & place : each.positions) {
            if (each.name == name && place.index == index) {
                return &place;
            }
        }
    }
    return nullptr;
}

void check_agreement(const Manifest & manifest, const Options & options, Findings & found) {
    const Golden golden = read_golden(manifest, GOLDEN);
    const bool has_floats = manifest.files.count(FIDELITY) > 0;
    const Golden floats = has_floats ? read_golden(manifest, FIDELITY) : Golden{};
    if (options.context && options.context < golden.context) {
        throw Failure(USAGE, std::string(GOLDEN) + " needs a context of " + std::to_string(golden.context) + " tokens");
    }
    Engine engine(manifest, options.context ? options.context : golden.context, options.threads);
    for (const GoldenCase & each : golden.cases) {
        engine.clear();
        for (const Position & place : each.positions) {
            const float * logits = engine.evaluate(each.tokens.data() + engine.length, place.index + 1 - engine.length);
            compare(found, each.name, place, logits, manifest.vocab_size, golden.tie_tolerance);
            const Position * there = position_of(floats, each.name, place.index);
            if (there && std::isfinite(logits[0])) {
                found.kl.push_back(divergence(*there, logits, manifest.vocab_size));
                found.float_equal += best_of(logits, manifest.vocab_size) == there->top_ids[0];
            }
        }
        fprintf(stderr, "agreement: %s\n", safe(each.name).c_str());
    }
    json model = nullptr;
    if (!found.kl.empty()) {
        double mean = 0;
        for (double each : found.kl) {
            mean += each / found.kl.size();
        }
        model = {{"positions", found.kl.size()}, {"equal", found.float_equal}, {"kl_mean", rounded(mean, 6)}, {"kl_budget", floats.kl_budget}};
        if (mean > floats.kl_budget) {
            found.failures.push_back("agreement: " + fixed(mean, 6) + " nats from the float model, more than " + fixed(floats.kl_budget, 6));
        }
    }
    found.agreement = {{"engine", ENGINE_NAME},
                       {"positions", found.positions},
                       {"equal", found.equal},
                       {"near_ties", found.near},
                       {"wrong", found.ties.size() - found.near},
                       {"max_logit_error", rounded(found.error, 5)},
                       {"max_logit_error_std", rounded(found.error_std, 5)},
                       {"kernels", kernels()},
                       {"ties", found.ties},
                       {"cosine", nullptr},
                       {"float_model", model}};
}

std::string table(const json & body) {
    std::string out = "artifact     " + body["artifact"].get<std::string>();
    out += std::string("\nfiles        ") + (body["intact"].get<bool>() ? "intact" : "NOT intact");
    const json & tokens = body["tokens"], & agreement = body["agreement"];
    if (!tokens.is_null()) {
        out += "\ntokens       " + dump(tokens["equal"]) + " of " + dump(tokens["cases"]) + " equal";
    }
    if (!agreement.is_null()) {
        out += "\nagreement    " + dump(agreement["equal"]) + " of " + dump(agreement["positions"]) + " tokens equal, " +
               dump(agreement["near_ties"]) + " near ties, " + dump(agreement["wrong"]) + " wrong; kernels " + kernels();
    }
    out += "\nverdict      " + body["verdict"].get<std::string>() + " after " + dump(body["seconds"]) + " s (templates are not rendered here)";
    for (const json & each : body["failures"]) {
        out += "\n  " + each.get<std::string>();
    }
    return out;
}

}  // namespace

Answer verify(const Options & options) {
    const double start = seconds();
    const Manifest manifest = read_manifest(options.artifact);
    Findings found;
    for (const std::string & problem : compare_files(manifest.directory, manifest.files, "edgeship.json")) {
        found.failures.push_back("files: " + problem);
    }
    const bool intact = found.failures.empty();
    check_size(manifest, found);
    if (found.failures.empty()) {  // nothing is opened by an engine while a hash is wrong
        check_tokens(manifest, found);
        check_agreement(manifest, options, found);
    }
    const bool passed = found.failures.empty();
    const json body = {{"artifact", manifest.directory},
                       {"name", manifest.name},
                       {"verdict", passed ? "pass" : "fail"},
                       {"intact", intact},
                       {"size", found.size},
                       {"templates", nullptr},
                       {"tokens", found.tokens},
                       {"agreement", found.agreement},
                       {"skipped", {"templates"}},
                       {"failures", found.failures},
                       {"seconds", rounded(seconds() - start, 3)}};
    return {body, table(body), passed ? OK : VERIFY};
}
