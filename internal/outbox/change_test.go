package outbox

import (
	"slices"
	"testing"
	"time"

	"cardorder/internal/d1client"
	"cardorder/internal/store"
)

// What an answer to a change means for it, and for sending it again. The order stays
// where it is whatever the answer.
func TestChanged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		answer d1client.Answer
		change *store.ChangeAnswer
		next   store.Next // without RunIn
	}{
		{"taken", d1client.Answer{Outcome: d1client.Taken, OperationID: "op"}, &store.ChangeAnswer{Taken: true, OperationID: "op"}, store.Next{}},
		{"taken without an id", d1client.Answer{Outcome: d1client.Taken}, &store.ChangeAnswer{Taken: true}, store.Next{}},
		{"a field is wrong", d1client.Answer{Outcome: d1client.Refused, Reply: d1client.Reply{Status: 400}}, &store.ChangeAnswer{}, store.Next{}},
		{"no such order", d1client.Answer{Outcome: d1client.Refused, Reply: d1client.Reply{Status: 404}}, &store.ChangeAnswer{}, store.Next{}},
		{"refused, perhaps for being done", d1client.Answer{Outcome: d1client.Refused, Reply: d1client.Reply{Status: 409}}, &store.ChangeAnswer{MayHave: true}, store.Next{}},
		{"not taken", d1client.Answer{Outcome: d1client.NotTaken}, nil, store.Next{Tries: 4, Unsent: true}},
		{"no answer", d1client.Answer{}, nil, store.Next{Tries: 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := message()
			m.Kind, m.Tries = store.KindChange, 3
			got := changed(m, store.Attempt{Kind: store.AttemptChange}, c.answer)
			if (got.Change == nil) != (c.change == nil) || c.change != nil && *got.Change != *c.change {
				t.Errorf("change %+v, want %+v", got.Change, c.change)
			}
			if again := got.Next.RunIn > 0; again != (c.change == nil) {
				t.Errorf("sent again in %v", got.Next.RunIn)
			}
			got.Next.RunIn = 0
			if got.Next != c.next {
				t.Errorf("next %+v, want %+v", got.Next, c.next)
			}
			if got.Evidence != nil || got.Seen != nil {
				t.Errorf("the order advances by %+v, %v", got.Evidence, got.Seen)
			}
			if a := got.Attempt; a.Kind != store.AttemptChange || a.Outcome != c.answer.Outcome.String() || a.OperationID != c.answer.OperationID {
				t.Errorf("attempt %+v", a)
			}
		})
	}
}

// What D1 shows of a change is the change's own only by its operation, and never the
// order's.
func TestShownChanges(t *testing.T) {
	t.Parallel()
	around := surroundings{owners: store.Owners{Operations: map[string]store.Owner{
		"change": {OrderID: us}, "card": {OrderID: us, Adopted: true}, "theirs": {OrderID: them},
	}}}
	update := func(id string) d1client.Operation {
		return d1client.Operation{OperationID: id, Operation: "UPDATE_ORDER", IssuerRequestID: "ours", Status: "FAILED", StartTime: sent}
	}
	got := policy().asked(message(), store.Attempt{}, d1client.StatusAnswer{Finding: d1client.Found, Operations: []d1client.Operation{
		operation("card", "ours", 0), update("change"), update("theirs"), update("nobody's"),
	}}, around)
	if want := []store.ShownChange{{OperationID: "change", Status: "FAILED"}}; !slices.Equal(got.Changes, want) || !slices.Equal(got.Seen, []string{"card"}) {
		t.Errorf("changes %v, seen %v", got.Changes, got.Seen)
	}
}

func TestChangeObeysRetryAfter(t *testing.T) {
	t.Parallel()
	got := changed(message(), store.Attempt{}, d1client.Answer{
		Outcome: d1client.NotTaken, Reply: d1client.Reply{Status: 429, RetryAfter: 7 * time.Minute},
	})
	if got.Next.RunIn < 7*time.Minute {
		t.Errorf("sent again in %v", got.Next.RunIn)
	}
}

// A change whose content cannot be read is not lost, and calls nobody to the order: it
// expires, which does.
func TestUnreadableChange(t *testing.T) {
	t.Parallel()
	got := unreadableChange(message(), store.Attempt{Kind: store.AttemptChange})
	if got.Change != nil || !got.Next.Unsent || got.Next.RunIn <= 0 || got.Next.GiveUp || len(got.Evidence) > 0 {
		t.Errorf("%+v", got)
	}
	if got.Attempt.Kind != store.AttemptChange || got.Attempt.Reason != string(reasonUnreadableContent) {
		t.Errorf("attempt %+v", got.Attempt)
	}
}
