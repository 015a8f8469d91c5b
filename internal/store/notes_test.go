package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

func TestNotes(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "r").ID
	add := func(key, text string) (*store.Note, bool) {
		t.Helper()
		n, replayed, err := f.AddNote(t.Context(), store.NewNote{Action: action(id), Key: key, Text: text})
		if err != nil {
			t.Fatal(err)
		}
		return n, replayed
	}
	first, replayed := add("", "Ada called.")
	if replayed || first.Author != "ada" || first.Text != "Ada called." || strings.Contains(fmt.Sprintf("%v %+v", *first, first), "called") {
		t.Errorf("note %+v, replayed %v", first, replayed)
	}
	second, _ := add("key", "Ada called again.")
	if again, replayed := add("key", "Ada called again."); !replayed || again.ID != second.ID || !again.CreatedAt.Equal(second.CreatedAt) {
		t.Errorf("the same request again: %+v, %v", again, replayed)
	}
	_, _, err := f.AddNote(t.Context(), store.NewNote{Action: action(id), Key: "key", Text: "Something else."})
	if kind, order := conflictOf(err); kind != store.ContentDiffers || order != id {
		t.Errorf("another note with the same key: %v", err)
	}
	bob := store.NewNote{Action: action(id), Key: "key", Text: "Bob's key is his own."}
	bob.Actor = "bob"
	if _, replayed, err := f.AddNote(t.Context(), bob); err != nil || replayed {
		t.Errorf("another client's key: %v, %v", replayed, err)
	}
	wrong := store.NewNote{Action: action(id), Text: "x"}
	wrong.Version = 1
	if _, _, err := f.AddNote(t.Context(), wrong); !errors.Is(err, store.ErrVersion) {
		t.Errorf("of another version: %v", err)
	}
	if _, _, err := f.AddNote(t.Context(), store.NewNote{Action: action(uuid.New()), Text: "x"}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("of no order: %v", err)
	}
	if n := value[int](f, `SELECT count(*) FROM order_notes WHERE position('called'::bytea IN body) > 0`); n != 0 {
		t.Error("notes rest in clear")
	}

	entries, err := f.Timeline(t.Context(), issuer, id)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		switch {
		case e.Note != nil:
			list = append(list, e.Note.Author+": "+e.Note.Text)
		case e.Event != nil:
			list = append(list, string(e.Event.Type))
		}
	}
	if want := "accepted|ada: Ada called.|note-added|ada: Ada called again.|note-added|bob: Bob's key is his own.|note-added"; strings.Join(list, "|") != want {
		t.Errorf("the timeline is %s", strings.Join(list, "|"))
	}
	// A note that was moved to another order is not opened.
	other := f.accept("other", "r2").ID
	f.exec(`UPDATE order_notes SET order_id = $1 WHERE id = $2`, other, second.ID)
	if entries, err = f.Timeline(t.Context(), issuer, other); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Note != nil && e.Note.Text != "" {
			t.Error("a sealed note is bound to its order")
		}
	}
	f.whole()
}

func TestClearAttention(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "r").ID
	cleared := func(a order.Attention) (*store.Order, error) {
		t.Helper()
		return f.ClearAttention(t.Context(), store.Clearance{Action: action(id), Attention: a, Note: "dealt with"})
	}
	if _, err := cleared(order.AttentionRejected); !errors.Is(err, store.ErrNotRaised) {
		t.Errorf("cleared what is not there: %v", err)
	}
	f.reject(id)
	version := f.order(id).State.Version
	o, err := cleared(order.AttentionRejected)
	if err != nil || len(o.State.Attention) != 0 || o.State.Version != version+1 {
		t.Fatalf("cleared: %+v, %v", o, err)
	}
	e := f.lastEvent(id)
	noteID := value[uuid.UUID](f, `SELECT id FROM order_notes`)
	if want := fmt.Sprintf(`{"noteId": %q, "attention": "rejected"}`, noteID); e.Type != store.EventAttentionCleared || e.Cause.Actor != "ada" || string(e.Cause.Detail) != want {
		t.Errorf("event %+v %s", e, e.Cause.Detail)
	}
	if o, err = cleared(order.AttentionRejected); err != nil || o.State.Version != version+1 {
		t.Errorf("cleared twice: %+v, %v", o, err)
	}
	if list, err := f.Orders(t.Context(), issuer, store.Filter{Attention: store.AnyAttention, Limit: 10}); err != nil || len(list) != 0 {
		t.Errorf("still listed: %v, %v", list, err)
	}
	// It comes again with its cause.
	f.retry(id)
	f.reject(id)
	if o := f.order(id); !slices.Equal(o.State.Attention, []order.Attention{order.AttentionRejected}) {
		t.Errorf("rejected again: %v", o.State.Attention)
	}
	for code, want := range map[order.Attention]int{order.AttentionRejected: 1, order.AttentionFailed: 0, store.AnyAttention: 1} {
		if list, err := f.Orders(t.Context(), issuer, store.Filter{Attention: code, Limit: 10}); err != nil || len(list) != want {
			t.Errorf("%s: %d orders, %v", code, len(list), err)
		}
	}
	stats, err := f.Stats(t.Context())
	if err != nil || stats.Attention[store.IssuerAttention{IssuerID: issuer, Attention: order.AttentionRejected}] != 1 {
		t.Errorf("statistics: %v, %v", stats, err)
	}
	f.whole()
}

// A second card that was dealt with is not told of again, a third one is.
func TestClearSecondCard(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.accept("card", "r").ID
	f.complete(taken(f.claim(1, time.Minute)[0], "first"))
	see := func(i int, operation string, want ...order.Attention) {
		t.Helper()
		n := notification(i, operation, "CARD_PROD_READY")
		n.IssuerRequestID = "r"
		f.receive(n)
		if got := f.order(id).State.Attention; !slices.Equal(got, want) {
			t.Errorf("after %s: %v, want %v", operation, got, want)
		}
	}
	see(1, "second", order.AttentionSecondCard)
	if o, err := f.ClearAttention(t.Context(), store.Clearance{Action: action(id), Attention: order.AttentionSecondCard, Note: "destroyed"}); err != nil || len(o.State.Attention) != 0 {
		t.Fatalf("cleared: %+v, %v", o, err)
	}
	see(2, "second")
	see(3, "first")
	see(4, "third", order.AttentionSecondCard)
	f.whole()
}
