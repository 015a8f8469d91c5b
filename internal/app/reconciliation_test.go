package app_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/config"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
)

// talkative asks about an order of which nothing was heard for some moments.
func talkative(cfg *config.Config) {
	silentAfter := 300 * time.Millisecond
	cfg.Issuers[0].Sending.SilentAfter = &silentAfter
}

// drift lists all that asking D1 found, in pages of one.
func (b *bank) drift() (list []client.Drift) {
	b.t.Helper()
	f := client.DriftFilter{Limit: 1, From: time.Now().Add(-time.Hour)}
	for {
		page, err := b.client().Drift(b.t.Context(), f)
		if err != nil {
			b.t.Fatal(err)
		}
		if list = append(list, page.Data...); page.NextCursor == "" {
			return list
		}
		f.Cursor = page.NextCursor
	}
}

// asked is how often D1 was asked about a card.
func (b *bank) asked(card string) int {
	b.t.Helper()
	history, err := b.env.Management.History(b.t.Context(), d1sim.Filter{Kind: d1sim.KindStatus, CardID: card})
	if err != nil {
		b.t.Fatal(err)
	}
	return len(history)
}

// found returns the events of an order that asking D1 made, and checks what belongs to
// each of them.
func (b *bank) found(id string) (events []client.Event) {
	b.t.Helper()
	timeline, err := b.client().Timeline(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	questions := make(map[string]bool)
	for _, e := range timeline {
		if e.Attempt != nil && e.Attempt.Kind == "ask" {
			questions[e.Attempt.ID] = true
		}
	}
	for _, e := range timeline {
		if e.Event != nil && e.Event.Cause == "reconciliation" {
			events = append(events, *e.Event)
			if !questions[e.Event.CauseID] {
				b.t.Errorf("event %d names no question: %q", e.Event.Seq, e.Event.CauseID)
			}
		}
	}
	return events
}

// An order of which every notification gets lost arrives all the same, and what D1 had not
// told is in the list.
func TestLostNotificationsAreFoundByAsking(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.Faults = &d1sim.Faults{LostNotifications: 1}
	b := newBank(t, sim, talkative)
	id := b.place(b.thales("mute"))
	a := b.await(id, "SHIPPED")
	if len(a.view.Shipments) != 1 || a.view.Shipments[0].TrackingNumber == "" || len(a.view.Attention) > 0 {
		t.Errorf("parcels %+v, attention %v", a.view.Shipments, a.view.Attention)
	}
	b.noGaps(id)
	events, list := b.found(id), b.drift()
	if len(events) == 0 || len(list) != len(events) {
		t.Fatalf("found %+v, the list is %+v", events, list)
	}
	slices.Reverse(list)
	for i, d := range list {
		e := events[i]
		if d.OrderID != id || d.Seq != e.Seq || d.Status != e.Status || d.PreviousStatus != e.PreviousStatus || d.AttemptID != e.CauseID || d.NotifiedLater {
			t.Errorf("the list has %+v for event %+v", d, e)
		}
	}
	if last := list[len(list)-1]; last.Status != client.StatusShipped {
		t.Errorf("the last one is %+v", last)
	}
	b.wantMetrics(`cardorder_drift_total{difference="SHIPPED",issuer="ISSUER0001"} 1`)
	lines := func() (n int) {
		for line := range strings.Lines(b.logs.String()) {
			if strings.Contains(line, "cause=reconciliation") && strings.Contains(line, "level=WARN") && strings.Contains(line, id) {
				n++
			}
		}
		return n
	}
	b.eventually("the log tells of each", func() bool { return lines() >= len(events) })
	if n := lines(); n != len(events) {
		t.Errorf("%d lines of the log tell of %d events", n, len(events))
	}
	if n := query[int](b, `SELECT count(*) FROM notifications`); n != 0 {
		t.Errorf("%d notifications came", n)
	}
}

// A status that is not known here is told by its name also when only asking D1 shows it.
func TestUnknownStatusFoundByAsking(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.StopAt, sim.Faults = d1sim.CardProdReady, &d1sim.Faults{LostNotifications: 1}
	b := newBank(t, sim, talkative)
	id := b.place(b.thales("unheard"))
	b.await(id, "READY")
	b.move(id, d1sim.Move{Status: "CARD_PROD_POLISHED"})
	b.eventually("somebody is called", func() bool { return b.get(id).needs("unknown-status") })
	events := b.found(id)
	if last := events[len(events)-1]; last.Type != "attention-changed" || string(last.Detail) != `{"unknownStatus":"CARD_PROD_POLISHED"}` {
		t.Errorf("the event that called them: %+v, detail %s", last, last.Detail)
	}
	b.noGaps(id)
}

// Notifications that come when D1 was asked already change nothing, and show in the list.
func TestLateNotificationsChangeNothing(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.HoldNotifications = true
	b := newBank(t, sim, talkative)
	id := b.place(b.thales("late"))
	a := b.await(id, "SHIPPED")
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
	b.wait(d1sim.Condition{Idle: true})
	b.eventually("all of them are applied", func() bool {
		return query[int](b, `SELECT count(*) FROM notifications WHERE outcome = 'applied'`) == 6
	})
	if after := b.get(id); after.view.Version != a.view.Version || len(after.view.Attention) > 0 {
		t.Errorf("version %d became %d, attention %v", a.view.Version, after.view.Version, after.view.Attention)
	}
	b.noGaps(id)
	for _, d := range b.drift() {
		if !d.NotifiedLater {
			t.Errorf("it does not show in %+v", d)
		}
	}
}

// D1 is asked ever more rarely about an order that stands still, and then people are
// told; the next news end both.
func TestSilenceIsAskedAboutEverMoreRarely(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.StopAt = d1sim.CardProdReady
	b := newBank(t, sim, talkative)
	id := b.place(b.thales("still"))
	b.await(id, "READY")
	b.eventually("people are told", func() bool { return b.attentive(id, "silent") })
	if n := b.asked("card-still"); n < 3 {
		t.Errorf("people are told after %d questions", n)
	}
	checks := query[int](b, `SELECT checks FROM order_state`)
	wait := 300 * time.Millisecond << checks * 9 / 10
	if next := query[time.Duration](b, `SELECT next_check_at - heard_at FROM order_state`); next < wait {
		t.Errorf("after %d questions the next one comes %v after the news, want %v at least", checks, next, wait)
	}
	if len(b.found(id)) > 0 {
		t.Errorf("D1 had nothing to say, and %+v was found", b.found(id))
	}
	b.settings(func(s *d1sim.Settings) { s.StopAt = "" })
	b.await(id, "SHIPPED")
	if b.attentive(id, "silent") {
		t.Error("the news did not end it")
	}
	if query[bool](b, `SELECT next_check_at IS NOT NULL FROM order_state`) {
		t.Error("an order that has arrived is asked about")
	}
	b.noGaps(id)
}

// While somebody has paused the lane D1 is asked nothing.
func TestPausedLaneAsksNothing(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.HoldNotifications, sim.StopAt = true, d1sim.CardProdRequested
	b := newBank(t, sim, talkative)
	id := b.place(b.thales("paused"))
	b.await(id, "SUBMITTED")
	if a := b.action(lanes+"/d1/pause", `{"reason":"D1 maintenance"}`, nil); a.status != http.StatusOK {
		t.Fatal(a.text)
	}
	b.settings(func(s *d1sim.Settings) { s.StopAt = "" })
	b.wait(d1sim.Condition{Status: d1sim.CardShipped, Cards: 1})
	b.settled()
	before, version := b.asked("card-paused"), b.get(id).view.Version
	b.settled()
	b.settled()
	if n := b.asked("card-paused"); n != before {
		t.Errorf("%d questions came while the lane was paused", n-before)
	}
	if now := b.get(id); now.view.Version != version {
		t.Errorf("the order went from version %d to %d", version, now.view.Version)
	}
	b.action(lanes+"/d1/resume", "", nil)
	b.await(id, "SHIPPED")
}

// settled waits for the end of a whole beat: the one that may be under way, and another.
func (b *bank) settled() {
	b.t.Helper()
	beat := func() time.Time { return query[time.Time](b, `SELECT max(seen_at) FROM replicas`) }
	for range 2 {
		last := beat()
		b.eventually("the service's heart beats", func() bool { return beat().After(last) })
	}
}

// What asks about the list is asked in the same way as of all lists.
func TestDriftRefusals(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	const drift = "/v1/issuers/" + local.IssuerID + "/drift"
	for query, want := range map[string]string{
		"?from=today": "/from", "?limit=0": "limit", "?cursor=x": "cursor", "?status=SHIPPED": "status",
		"?cursor=AQGZCmh37HThtm1sl7uSYqU": "cursor", // of another list
	} {
		a := b.do(http.MethodGet, drift+query, nil, nil)
		if a.status != http.StatusBadRequest || !strings.Contains(a.text, strings.TrimPrefix(want, "/")) {
			t.Errorf("%s was answered %d %s", query, a.status, a.text)
		}
	}
	if a := b.do(http.MethodGet, drift, nil, nil); a.status != http.StatusOK || len(a.view.Data) != 0 || a.view.NextCursor != nil {
		t.Errorf("the empty list is %d %s", a.status, a.text)
	}
}

// What became of a change shows in D1's answers, too.
func TestLostWordOfAChangeIsFoundByAsking(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.Faults = &d1sim.Faults{LostNotifications: 1}
	sim.StopAt, sim.StatusWithChanges = d1sim.CardProdRequested, true
	b := newBank(t, sim, talkative)
	id := b.place(b.thales("moved"))
	b.await(id, "SUBMITTED")
	c, err := b.client().ChangeOrder(t.Context(), id, client.NewChange{
		Type:               client.ChangeRedirect,
		NewDeliveryAddress: &client.Address{FirstName: "Ada", LastName: "Example", Line1: "2 Rue de la Paix", ZipCode: "75002", City: "Paris", CountryCode: "FR"},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.eventually("the change is accepted", func() bool {
		now, err := b.client().Change(t.Context(), id, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		return now.State == client.ChangeAccepted
	})
	found := b.found(id)
	if !slices.ContainsFunc(found, func(e client.Event) bool { return e.Type == "change-changed" }) {
		t.Errorf("found %+v", found)
	}
	// Asked again, D1 says the same again, and it is no news.
	asked := b.asked("card-moved")
	b.eventually("D1 is asked again", func() bool { return b.asked("card-moved") > asked })
	b.settled()
	if again := b.found(id); len(again) != len(found) {
		t.Errorf("found %+v", again)
	}
	b.noGaps(id)
}
