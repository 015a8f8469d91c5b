package app_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// rule is one of deploy/prometheus.
type rule struct {
	Record, Alert, Expr string
	Labels              struct{ Severity string }
	Annotations         struct{ Summary, Description, Runbook string }
}

func rulesFile(t *testing.T) []rule {
	t.Helper()
	var file struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal([]byte(repositoryFile(t, "deploy/prometheus/cardorder.rules.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatal("one group with rules is wanted: recorded ones come before those that use them")
	}
	return file.Groups[0].Rules
}

func repositoryFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The runbook's alarms are rules, and rules lead to the runbook.
func TestEveryAlarmHasARule(t *testing.T) {
	t.Parallel()
	docs := repositoryFile(t, "docs/operations.md")
	rules := rulesFile(t)

	metric := regexp.MustCompile("`(cardorder_[a-z0-9_]+)`")
	alarms := 0
	for line := range strings.Lines(docs) {
		if !strings.HasPrefix(line, "| `cardorder_") || !strings.Contains(line, "**alarm**") {
			continue
		}
		alarms++
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		if !slices.ContainsFunc(metric.FindAllStringSubmatch(first, -1), func(m []string) bool {
			return slices.ContainsFunc(rules, func(r rule) bool { return r.Alert != "" && slices.Contains(named(r.Expr), m[1]) })
		}) {
			t.Errorf("the alarm of%shas no rule", first)
		}
	}
	if alarms < 15 {
		t.Errorf("only %d alarms were found in docs/operations.md: has the table another form?", alarms)
	}

	sections := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$|^<a id="([a-z0-9-]+)"></a>$`).FindAllStringSubmatch(docs, -1) {
		heading := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		sections[strings.ReplaceAll(heading, " ", "-")+m[2]] = true
	}
	for _, r := range rules {
		if r.Alert == "" {
			continue
		}
		if section, ok := strings.CutPrefix(r.Annotations.Runbook, "docs/operations.md#"); !ok || !sections[section] {
			t.Errorf("%s: docs has no %q", r.Alert, r.Annotations.Runbook)
		}
		if r.Labels.Severity != "page" && r.Labels.Severity != "ticket" || r.Annotations.Summary == "" || r.Annotations.Description == "" {
			t.Errorf("%s: %+v %+v", r.Alert, r.Labels, r.Annotations)
		}
	}
}

// A rule that names what is not there never fires.
func TestRulesNameWhatIsMeasured(t *testing.T) {
	t.Parallel()
	_, programs := programsFile(t, goldProgram)
	b := newMutualBank(t, programs)
	measured := make(map[string]map[string][]string) // values by label by metric
	label := regexp.MustCompile(`(\w+)="([^"]*)"`)
	for line := range strings.Lines(b.metrics()) {
		if name := regexp.MustCompile(`^cardorder_\w+`).FindString(line); name != "" {
			if measured[name] == nil {
				measured[name] = make(map[string][]string)
			}
			for _, m := range label.FindAllStringSubmatch(line, -1) {
				measured[name][m[1]] = append(measured[name][m[1]], m[2])
			}
		}
	}

	recorded := make(map[string]bool)
	for _, r := range rulesFile(t) {
		known := map[string]bool{"instance": true} // labels: Prometheus adds this one
		for _, name := range named(r.Expr) {
			if strings.Contains(name, ":") && !recorded[name] || !strings.Contains(name, ":") && measured[name] == nil {
				t.Errorf("%s%s: there is no %s", r.Record, r.Alert, name)
			}
			for l := range measured[name] {
				known[l] = true
			}
		}
		recorded[r.Record] = true
		for _, m := range regexp.MustCompile(`label_replace\((?s:.*?)"(\w+)", "[^"]*", "\w+"`).FindAllStringSubmatch(r.Expr, -1) {
			known[m[1]] = true
		}
		for _, m := range regexp.MustCompile(`\b(cardorder_\w+)\{(.*?)\}`).FindAllStringSubmatch(r.Expr, -1) {
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(measured[m[1]][l[1]], l[2]) {
					t.Errorf("%s: there is no %s{%s}", r.Alert, m[1], l[0])
				}
			}
		}
		for _, m := range regexp.MustCompile(`\b(?:by|on|without) \(([^)]*)\)|\$labels\.(\w+)`).FindAllStringSubmatch(r.Expr+r.Annotations.Summary, -1) {
			for l := range strings.SplitSeq(m[1]+m[2], ", ") {
				if l != "" && !known[l] {
					t.Errorf("%s%s: nothing has the label %s", r.Record, r.Alert, l)
				}
			}
		}
	}
}

// named are the metrics and recorded series of an expression.
func named(expr string) []string {
	return regexp.MustCompile(`(?:\w+:)?cardorder_\w+(?::\w+)?`).FindAllString(expr, -1)
}
