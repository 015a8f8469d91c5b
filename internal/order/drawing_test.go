package order

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "draw the life of an order anew in docs/architecture.md")

// TestDrawing holds docs/architecture.md to the code: tables and diagram are made from
// what Advance does. `go generate ./internal/order` draws them anew.
func TestDrawing(t *testing.T) {
	t.Parallel()
	const file, begin, end = "../../docs/architecture.md", "<!-- drawn by internal/order: go generate -->\n", "<!-- end of the drawing -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the drawing", file)
	}
	drawn := "\n" + drawStatuses(t) + "\n" + drawWords(t) + "\n" + drawDiagram(t) + "\n"
	switch {
	case old == drawn:
	case !*update:
		t.Errorf("%s shows another life: run `go generate ./internal/order`", file)
	default:
		if err := os.WriteFile(file, []byte(before+begin+drawn+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// meanings explains the statuses.
var meanings = map[Status]string{
	Accepted:       "stored, waiting to be sent",
	Held:           "kept back by a person, a rule, the request or `notBefore`: not sent until it is released",
	OutcomeUnknown: "sent, no answer; D1 is asked before anything is sent again",
	Rejected:       "D1 refused it; `retry` after correction",
	Submitted:      "D1 took it",
	DataPrepared:   "its data is processed",
	Ready:          "at the centre, ready to be made",
	OnHold:         "D1 holds it",
	InProduction:   "being made",
	Exception:      "trouble at D1 that may pass",
	Failed:         "D1 could not make it",
	Cancelled:      "cancelled here before D1 had it, or by D1; because it was asked to, until the card leaves",
	Produced:       "made; the end for INSTANT, CENTRAL and what is not shipped",
	Shipped:        "handed to the carrier; the end for everything else, as far as D1 knows",
	Delivered:      "the carrier delivered it",
	Returned:       "it comes back, or is back",
}

func drawStatuses(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| status | rank | meaning |\n|---|---|---|\n")
	ranks := map[Status][]int{Accepted: {0}, Held: {0}, OutcomeUnknown: {0}, Rejected: {0}, Cancelled: {0}}
	add := func(s State) {
		if !slices.Contains(ranks[s.Status], s.Rank) {
			ranks[s.Status] = append(ranks[s.Status], s.Rank)
			slices.Sort(ranks[s.Status])
		}
	}
	for _, operation := range []OperationStatus{OperationPending, OperationFailed} {
		for _, word := range words() {
			add(reported(word, operation))
		}
	}
	add(reported(onHoldWord, OperationPending))
	add(heard(NewState(Shipped), carriers("T1", Delivered)))
	add(heard(NewState(Shipped), CancelDone{}))
	for _, status := range Statuses {
		if meanings[status] == "" || len(ranks[status]) == 0 {
			t.Errorf("nothing is known of %s", status)
		}
		list := strings.Trim(strings.ReplaceAll(fmt.Sprint(ranks[status]), " ", ", "), "[]")
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", status, list, meanings[status])
	}
	return b.String()
}

// onHoldWord stands for a word of the configuration.
const onHoldWord = "one of `onHoldStatuses`"

// words are D1's words of production, in the order of their ranks.
func words() []string {
	return slices.SortedFunc(maps.Keys(places), func(x, y string) int { return cmp.Compare(places[x].rank, places[y].rank) })
}

func heard(s State, evidence ...Evidence) State {
	s, _ = Advance(s, Clock{}, evidence...)
	return s
}

func saying(word string, operation OperationStatus) Report {
	return Report{OperationID: "op", Operation: operation, Status: word, OnHold: word == onHoldWord}
}

func reported(word string, operation OperationStatus) State {
	return heard(NewState(Shipped), saying(word, operation))
}

// carriers is a carrier's word about a parcel.
func carriers(number string, status Status) Report {
	r := saying("CARD_SHIPPED", OperationSuccessful)
	r.Parcel = Parcel{number, status}
	return r
}

func drawWords(t *testing.T) string {
	var b strings.Builder
	show := func(s State) string {
		text := fmt.Sprintf("`%s`", s.Status)
		if s.Rank > 0 {
			text += fmt.Sprintf(" %d", s.Rank)
		} else {
			text = "nothing"
		}
		for _, a := range s.Attention {
			if a != attentionOf[s.Status] {
				text += fmt.Sprintf(", attention `%s`", a)
			}
		}
		return text
	}
	b.WriteString("What D1 says of a production (`PRODUCE`), and where it puts the order when nothing else is known:\n\n" +
		"| `details.status` | operation PENDING or SUCCESSFUL | operation FAILED |\n|---|---|---|\n")
	list := append(words(), onHoldWord, "", "anything else")
	slices.SortStableFunc(list[:len(list)-2], func(x, y string) int {
		return cmp.Compare(reported(x, OperationPending).Rank, reported(y, OperationPending).Rank)
	})
	for _, word := range list {
		pending, successful := reported(word, OperationPending), reported(word, OperationSuccessful)
		if pending.Status != successful.Status || pending.Rank != successful.Rank {
			t.Errorf("%s: %s when PENDING, %s when SUCCESSFUL", word, pending.Status, successful.Status)
		}
		name := cmp.Or(word, "none")
		if BuiltIn(word) {
			name = "`" + word + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, show(pending), show(reported(word, OperationFailed)))
	}

	b.WriteString("\nWhat its tracking hub says of a card (`STANDALONE_TRACKING`), in an operation that is SUCCESSFUL; in any other only the carrier's code counts:\n\n" +
		"| `trackingType` | `details.status` | |\n|---|---|---|\n")
	for _, key := range slices.SortedFunc(maps.Keys(tracked), func(x, y [2]string) int { return slices.Compare(x[:], y[:]) }) {
		s := heard(NewState(Produced), Tracking{Operation: OperationSuccessful, Type: key[0], Status: key[1]})
		for _, other := range []OperationStatus{OperationPending, OperationFailed} {
			if s := heard(NewState(Produced), Tracking{Operation: other, Type: key[0], Status: key[1]}); s.Rank > 0 {
				t.Errorf("%q: %s when %s", key, s.Status, other)
			}
		}
		word := "none"
		if key[1] != "" {
			word = "`" + key[1] + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", key[0], word, show(s))
	}
	unknown := heard(NewState(Produced), Tracking{Operation: OperationSuccessful, Type: TrackReturn, Status: "CARD_SHIPPED"})
	fmt.Fprintf(&b, "| | any other | %s |\n", show(unknown))
	return b.String()
}

// drawDiagram draws what leads from one status to the next. Where each arrow ends,
// Advance says.
func drawDiagram(t *testing.T) string {
	var b strings.Builder
	b.WriteString("```mermaid\nstateDiagram-v2\n    [*] --> ACCEPTED\n    [*] --> HELD: hold, notBefore\n")
	drawn := map[string]bool{}
	arrow := func(from State, label string, evidence ...Evidence) {
		to := heard(from, evidence...)
		if to.Status == from.Status {
			t.Errorf("%s: %q leads nowhere", from.Status, label)
		}
		line := fmt.Sprintf("    %s --> %s: %s\n", from.Status, to.Status, label)
		if !drawn[line] {
			b.WriteString(line)
		}
		drawn[line] = true
	}
	accepted := NewState(Shipped)
	held, unknown, rejected := heard(accepted, Hold{HeldByPerson}), heard(accepted, LostAnswer{}), heard(accepted, Refusal{})
	arrow(accepted, "hold", Hold{HeldByPerson})
	arrow(held, "release", Release{})
	arrow(accepted, "cancel", Cancel{})
	arrow(held, "cancel", Cancel{})
	arrow(rejected, "cancel", Cancel{})
	arrow(accepted, "no answer", LostAnswer{})
	arrow(unknown, "not there", NotFound{})
	arrow(accepted, "refused", Refusal{})
	arrow(rejected, "retry", Retry{})
	arrow(accepted, "202", Taken{})
	arrow(unknown, "found", Taken{})

	at := heard(accepted, Taken{})
	var beside []State // side states that the next step ends
	for _, word := range append(words(), onHoldWord) {
		report := saying(word, OperationPending)
		if word == onHoldWord || places[word].kind == away {
			continue
		}
		for _, hold := range []bool{true, false} { // on hold is before what outranks it
			r := report
			if hold {
				r = saying(onHoldWord, OperationPending)
				if places[word].rank < onHold.rank || at.Rank > onHold.rank || len(beside) > 0 && beside[len(beside)-1].Status == OnHold {
					continue
				}
			}
			next := heard(at, r)
			if next.Status == at.Status {
				continue
			}
			label := r.Status
			if hold {
				label = "on hold"
			}
			arrow(at, label, r)
			p, _ := r.place()
			switch p.kind {
			case side:
				beside = append(beside, next)
				if next.Status == Exception {
					arrow(next, word+", operation FAILED", saying(word, OperationFailed))
				}
			case step:
				if p == produced { // until the card leaves, that is
					arrow(next, "a cancel, done by D1", CancelDone{})
				}
				for _, s := range beside {
					arrow(s, label, r)
				}
				at, beside = next, nil
			}
		}
	}
	gone := heard(at, carriers("T1", ""))
	came, back := heard(gone, carriers("T1", Delivered)), heard(gone, carriers("T1", Returned))
	arrow(gone, "delivered", carriers("T1", Delivered))
	arrow(gone, "returned", carriers("T1", Returned))
	arrow(came, "returned", carriers("T1", Returned))
	arrow(back, "a new tracking number", carriers("T2", ""))
	b.WriteString("```\n")
	return b.String()
}
