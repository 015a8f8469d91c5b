package app_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"cardorder/internal/config"
	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// unforgiving makes a repeated issuerRequestId a second card, so that a resend
// without a question shows.
func unforgiving() d1sim.Settings {
	s := fast
	s.Repeat = d1sim.RepeatSecondCard
	return s
}

func (b *bank) oneCard(issuerRequestID string) {
	b.t.Helper()
	if n := b.cards(issuerRequestID); n != 1 {
		b.t.Errorf("%d cards were made for %s, want 1", n, issuerRequestID)
	}
}

// unsure keeps D1 from telling whether it has an order, so that an unknown outcome stays
// one until the returned function is called.
func (b *bank) unsure() (sure func()) {
	b.t.Helper()
	b.script(d1sim.Script{Kind: d1sim.KindStatus, Action: d1sim.ActionAnswer, Status: http.StatusServiceUnavailable, Times: 1_000_000})
	return func() {
		b.t.Helper()
		b.clearScripts()
		b.resume() // or the breaker waits
	}
}

// An answer that gets lost must not make a second card, also where D1 is not
// idempotent and its answers to questions are as poor as its documents allow.
func TestLostAnswerIsAdoptedFromPoorStatus(t *testing.T) {
	t.Parallel()
	for name, poor := range map[string]func(*d1sim.Settings){
		"without ids":        func(s *d1sim.Settings) { s.StatusWithoutRequestIDs = true },
		"latest only":        func(s *d1sim.Settings) { s.StatusLatestOnly = true },
		"after a lag":        func(s *d1sim.Settings) { s.StatusLag = d1sim.Duration(200 * time.Millisecond) },
		"unknown card empty": func(s *d1sim.Settings) { s.UnknownCard = d1sim.UnknownCardEmpty },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := unforgiving()
			sim.HoldNotifications = true // only the status can tell
			poor(&sim)
			b := newBank(t, sim)
			b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostAfter})
			id := b.place(b.thales("lost"))
			b.eventually("the order has its operation", func() bool { return b.get(id).view.OperationID != "" })
			b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
			b.await(id, "SHIPPED")
			b.oneCard("request-lost")
		})
	}
}

// A request that never reached D1 is sent again, but only after D1 has said
// twice that it is not there, later than it may need to show an order.
func TestLostRequestIsSentAgain(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.UnknownCard = d1sim.UnknownCardEmpty
	b := newBank(t, sim)
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostBefore})
	id := b.place(b.thales("gone"))
	b.await(id, "SHIPPED")
	if events := b.events(id); !slices.Contains(events, "status-changed OUTCOME_UNKNOWN") {
		t.Errorf("its events are %q", events)
	}
	b.oneCard("request-gone")
	b.noGaps(id)
	history, err := b.env.Management.History(t.Context(), d1sim.Filter{CardID: "card-gone"})
	if err != nil {
		t.Fatal(err)
	}
	first := slices.IndexFunc(history, func(r d1sim.Request) bool { return r.Kind == d1sim.KindProduction })
	again := slices.IndexFunc(history[first+1:], func(r d1sim.Request) bool { return r.Kind == d1sim.KindProduction }) + first + 1
	late := 0
	for _, r := range history[first:again] {
		if r.Kind == d1sim.KindStatus && r.Time.Sub(history[first].Time) >= 600*time.Millisecond {
			late++
		}
	}
	if late < 2 {
		t.Errorf("the order was sent again after %d questions later than resendAfter, want 2: %+v", late, history)
	}
}

// A 404 alone proves nothing: the path may be wrong. It counts once D1 answers
// the same question for a card that it certainly has.
func TestNotFoundCountsOnlyBesideAKnownCard(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgiving())
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostBefore, IssuerRequestID: "request-first"})
	first := b.place(b.thales("first"))
	b.eventually("a human is called", func() bool {
		a := b.get(first)
		return slices.ContainsFunc(a.view.Attention, func(a struct{ Code string }) bool { return a.Code == "outcome-unknown" })
	})
	if n := b.cards("request-first"); n != 0 {
		t.Fatalf("the order was sent again on unproven 404s: %d cards", n)
	}
	b.place(b.thales("second"))
	a := b.await(first, "SHIPPED")
	if len(a.view.Attention) > 0 {
		t.Errorf("attention stays: %v", a.view.Attention)
	}
	b.oneCard("request-first")
}

// With afterUnknown: wait nothing is ever sent twice, and a human is called.
func TestNeverResendWaits(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.UnknownCard = d1sim.UnknownCardEmpty
	b := newBank(t, sim, func(cfg *config.Config) { cfg.Issuers[0].Sending.AfterUnknown = "wait" })
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostBefore})
	id := b.place(b.thales("wait"))
	b.eventually("a human is called", func() bool { return len(b.get(id).view.Attention) > 0 })
	if a := b.get(id); a.view.Status != "OUTCOME_UNKNOWN" || b.cards("request-wait") != 0 {
		t.Errorf("status %s, %d cards", a.view.Status, b.cards("request-wait"))
	}
}

// A 409 is never answered by sending again, and never by giving up.
func TestConflictIsAskedAboutForEver(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.UnknownCard = d1sim.UnknownCardEmpty
	b := newBank(t, sim)
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: http.StatusConflict, Body: `{}`})
	id := b.place(b.thales("conflict"))
	// Many more questions than would be enough to send an order again.
	b.wait(d1sim.Condition{Kind: d1sim.KindStatus, Requests: 8, CardID: "card-conflict"})
	a := b.get(id)
	if a.view.Status != "OUTCOME_UNKNOWN" || len(a.view.Attention) == 0 || a.view.Attention[0].Code != "conflict" {
		t.Errorf("status %s, attention %v", a.view.Status, a.view.Attention)
	}
	if n := b.cards("request-conflict"); n != 0 {
		t.Errorf("%d cards", n)
	}
}

// A refusal that need not be the order's fault rejects nothing by itself: it may pass.
func TestRefusalThatPasses(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]d1sim.Script{
		"crypto error":  {Kind: d1sim.KindProduction, Action: d1sim.ActionReject, ErrorCode: "CRYPTO_ERROR"},
		"400 by a wall": {Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 400, Body: "<html>no</html>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t, unforgiving())
			b.script(s)
			id := b.place(b.thales("again"))
			b.await(id, "SHIPPED")
			b.oneCard("request-again")
			b.noGaps(id)
		})
	}
}

// deadWorker claims an order as another replica would, calls D1 or not, and is
// never heard of again.
func deadWorker(t *testing.T, b *bank, send bool) {
	t.Helper()
	cfg := b.env.ServiceConfig()
	st := openStore(t, cfg)
	var claimed []store.Message
	b.eventually("the order is claimed", func() bool {
		var err error
		claimed, err = st.Claim(t.Context(), store.ClaimRequest{Lane: store.LaneOf(local.IssuerID), Class: store.ClassSingle, Limit: 1, Lease: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return len(claimed) > 0
	})
	if !send {
		return
	}
	clientConfig, err := cfg.Issuers[0].ClientConfig(cfg.Environment)
	if err != nil {
		t.Fatal(err)
	}
	client, err := d1client.New(clientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if a := client.Produce(t.Context(), d1client.Call{CardID: claimed[0].CardID, Body: claimed[0].Body}); a.Outcome != d1client.Taken {
		t.Fatalf("the dead worker's call: %+v", a)
	}
}

func openStore(t *testing.T, cfg *config.Config) *store.Store {
	t.Helper()
	sealer, err := store.NewSealer([]byte(cfg.Keys.Sealing.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	key, err := cfg.Keys.ContentHash.Bytes32()
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Config{URL: cfg.Database.URL.Reveal(), Seal: sealer, HashKeys: store.HashKeys{Current: key}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

// accept stores an order while no service runs.
func accept(t *testing.T, b *bank, o body) string {
	t.Helper()
	content := mustJSON(t, o)
	request, faults := order.Decode(content, &order.Rules{})
	if faults != nil {
		t.Fatal(faults)
	}
	accepted, err := openStore(t, b.env.ServiceConfig()).Accept(t.Context(), store.Acceptance{
		IssuerID: local.IssuerID, Client: "test", Request: request,
	})
	if err != nil {
		t.Fatal(err)
	}
	return accepted.Order.ID.String()
}

// A worker that dies after its claim leaves an unknown outcome: whoever takes
// over asks first, whether the card was made or not.
func TestDeadWorkersMessageIsTakenOverByAsking(t *testing.T) {
	t.Parallel()
	for name, sent := range map[string]bool{"after sending": true, "before sending": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := unforgiving()
			sim.UnknownCard = d1sim.UnknownCardEmpty
			sim.HoldNotifications = true
			b := newBank(t, sim)
			if err := b.env.StopService(t.Context()); err != nil {
				t.Fatal(err)
			}
			id := accept(t, b, b.thales("orphan"))
			deadWorker(t, b, sent)
			if err := b.env.StartService(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.eventually("the order has its operation", func() bool { return b.get(id).view.OperationID != "" })
			history, err := b.env.Management.History(t.Context(), d1sim.Filter{CardID: "card-orphan"})
			if err != nil {
				t.Fatal(err)
			}
			if firstOfOurs := history[map[bool]int{true: 1, false: 0}[sent]]; firstOfOurs.Kind != d1sim.KindStatus {
				t.Errorf("the service's first request was %s, want a question", firstOfOurs.Kind)
			}
			b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
			b.await(id, "SHIPPED")
			b.oneCard("request-orphan")
			b.noGaps(id)
		})
	}
}

// A second start finds everything as it was, and goes on with what was under way.
func TestSecondStartFindsEverything(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.HoldNotifications = true
	b := newBank(t, sim)
	var ids []string
	for i := range 5 {
		ids = append(ids, b.place(b.thales(fmt.Sprintf("kept-%d", i))))
	}
	for _, id := range ids {
		b.await(id, "SUBMITTED")
	}
	before := b.get(ids[0])
	if err := b.env.StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	waiting := accept(t, b, b.thales("waiting"))
	if err := b.env.StartService(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := b.get(ids[0]); after.text != before.text {
		t.Errorf("before the restart: %s\nafter it: %s", before.text, after.text)
	}
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
	for _, id := range append(ids, waiting) {
		b.await(id, "SHIPPED")
		b.noGaps(id)
	}
	if again := b.post(b.thales("kept-0"), nil); again.status != http.StatusOK || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("a repeated request after the restart: %d %s", again.status, again.text)
	}
}

// A stop lets a call to D1 finish and stores its answer: nothing is left to ask.
func TestStopDrains(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.HoldNotifications = true
	b := newBank(t, sim)
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionDelay, Delay: d1sim.Duration(500 * time.Millisecond)})
	id := b.place(b.thales("drained"))
	b.wait(d1sim.Condition{Cards: 1}) // made, not yet answered
	if err := b.env.StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := query[int](b, `SELECT count(*) FROM attempts WHERE outcome = 'taken'`); n != 1 {
		t.Errorf("%d answers were stored before the stop, want 1", n)
	}
	if err := b.env.StartService(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := b.get(id); a.view.Status != "SUBMITTED" {
		t.Errorf("status %s", a.view.Status)
	}
}

// One card at a time: a later order of a card is not sent while an earlier one
// may still be under way.
func TestOneCardAtATime(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.UnknownCard = d1sim.UnknownCardEmpty
	b := newBank(t, sim)
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostBefore, IssuerRequestID: "request-one"})
	sure := b.unsure()
	first := b.place(b.thales("one"))
	b.await(first, "OUTCOME_UNKNOWN")
	second := b.place(b.thales("one").with(body{
		"issuerRequestId": "request-two", "duplicateOverride": body{"reason": "a test of the order of sending"},
	}))
	sure()
	b.await(second, "SHIPPED")
	history, err := b.env.Management.History(t.Context(), d1sim.Filter{Kind: d1sim.KindProduction})
	if err != nil {
		t.Fatal(err)
	}
	var sent []string
	for _, r := range history {
		sent = append(sent, r.IssuerRequestID)
	}
	if want := []string{"request-one", "request-one", "request-two"}; !slices.Equal(sent, want) {
		t.Errorf("sent %v, want %v", sent, want)
	}
}

// D1's word about an order that a worker has in hand, but has not sent yet,
// keeps it from being sent: the evidence may come while the token is fetched.
func TestEvidenceStopsASendingUnderWay(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.HoldNotifications = true
	b := newBank(t, sim, func(cfg *config.Config) { cfg.Issuers[0].Sending.CallTimeout = patience })
	// Long enough for the evidence to come meanwhile, on a busy machine too.
	b.script(d1sim.Script{Kind: d1sim.KindToken, Action: d1sim.ActionDelay, Delay: d1sim.Duration(6 * time.Second)})
	id := b.place(b.thales("known"))
	b.eventually("a worker has it", func() bool {
		return query[int](b, `SELECT count(*) FROM outbox WHERE claim_token IS NOT NULL`) == 1
	})
	b.notify(mustJSON(t, body{"operations": []body{{
		"operationId": "sent-before", "operation": "PRODUCE", "status": "PENDING", "cardId": "card-known",
		"issuerRequestId": "request-known", "details": body{"status": "CARD_PROD_READY"},
	}}}))
	b.await(id, "READY")
	// The next order's sending shows that the token has come.
	b.place(b.thales("next"))
	b.wait(d1sim.Condition{Cards: 1, IssuerRequestID: "request-next"})
	if a := b.get(id); b.cards("request-known") != 0 || len(a.view.Attention) > 0 {
		t.Errorf("%d cards, attention %v", b.cards("request-known"), a.view.Attention)
	}
}

// An order that D1 never answers and never shows calls for a human, though it is
// sent again and again.
func TestEndlessResendingCallsForAHuman(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.UnknownCard = d1sim.UnknownCardEmpty
	b := newBank(t, sim)
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 500, Times: 3})
	id := b.place(b.thales("mute"))
	b.eventually("a human is called", func() bool {
		a := b.get(id)
		return slices.ContainsFunc(a.view.Attention, func(a struct{ Code string }) bool { return a.Code == "resending" })
	})
	if a := b.await(id, "SHIPPED"); len(a.view.Attention) > 0 {
		t.Errorf("attention stays: %v", a.view.Attention)
	}
	b.oneCard("request-mute")
}
