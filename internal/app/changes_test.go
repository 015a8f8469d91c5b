package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cardorder/internal/config"
	"cardorder/internal/d1sim"
)

// Changes of an order that is on its way, as a bank meets them: through the API on one
// side and the simulator on the other. A cancel that wins against the sending leaves no
// trace at D1, and one that loses gets there: rule 8 of sending.

// change is what the API says of one.
type change struct {
	ID, Type, State, Reason, OperationID, ConflictingChange string
	MayStillArrive                                          bool
	Errors                                                  []struct{ Pointer, Code string }
	status                                                  int
	text                                                    string
}

func (b *bank) change(orderID, key string, content body) change {
	b.t.Helper()
	return b.readChange(b.do(http.MethodPost, orders+"/"+orderID+"/changes", http.Header{"Idempotency-Key": {key}}, mustJSON(b.t, content)))
}

func (b *bank) readChange(a answer) change {
	b.t.Helper()
	var view struct {
		change
		Status any // a problem's is a number
	}
	if err := json.Unmarshal([]byte(a.text), &view); err != nil {
		b.t.Fatal(err)
	}
	view.status, view.text = a.status, a.text
	return view.change
}

// want asks for a change that must be taken.
func (b *bank) want(orderID string, content body) change {
	b.t.Helper()
	c := b.change(orderID, "change-"+orderID+"-"+content["type"].(string), content)
	if c.status != http.StatusCreated {
		b.t.Fatalf("wanting a change: %d %s", c.status, c.text)
	}
	return c
}

func (b *bank) changes(orderID string) (list []change) {
	b.t.Helper()
	for _, raw := range b.do(http.MethodGet, orders+"/"+orderID+"/changes", nil, nil).view.Data {
		var c change
		if err := json.Unmarshal(raw, &c); err != nil {
			b.t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// changeIs waits until the order's change has a state, and returns it.
func (b *bank) changeIs(orderID, id, state string) (c change) {
	b.t.Helper()
	b.eventually("change "+id+" is "+state, func() bool {
		c = b.readChange(b.do(http.MethodGet, orders+"/"+orderID+"/changes/"+id, nil, nil))
		return c.State == state
	})
	return c
}

// card is the simulator's card of a request.
func (b *bank) card(issuerRequestID string) d1sim.Card {
	b.t.Helper()
	cards, err := b.env.Management.Cards(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	i := slices.IndexFunc(cards, func(c d1sim.Card) bool { return c.IssuerRequestID == issuerRequestID })
	if i < 0 {
		return d1sim.Card{}
	}
	return cards[i]
}

// allHeard waits until no notification waits for its order.
func (b *bank) allHeard() {
	b.t.Helper()
	b.wait(d1sim.Condition{Delivered: true})
	b.eventually("every notification is applied", func() bool {
		return query[int](b, `SELECT count(*) FROM notifications WHERE outcome <> 'applied'`) == 0
	})
}

var cancel = body{"type": "CANCEL"}

func redirect(city string) body {
	return body{"type": "REDIRECT", "newDeliveryAddress": body{
		"firstName": "Ada", "lastName": "Example", "line1": "7 Elsewhere Road", "zipCode": "9000", "city": city, "countryCode": "BE",
	}}
}

// halting is a simulator that keeps every card at a step.
func halting(step string) d1sim.Settings {
	s := fast
	s.StopAt = step
	return s
}

// goOn lets the cards walk to the end.
func (b *bank) goOn() { b.settings(func(s *d1sim.Settings) { s.StopAt = "" }) }

func TestCancelBeforeDispatch(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	b.pause()
	id := b.place(b.thales("early"))
	c := b.want(id, cancel)
	if c.State != "ACCEPTED" || c.Reason != "before-dispatch" || c.MayStillArrive {
		t.Errorf("cancelled: %+v", c)
	}
	if a := b.get(id); a.view.Status != "CANCELLED" || len(a.view.Attention) > 0 {
		t.Errorf("the order: %s", a.text)
	}
	if again := b.change(id, "change-"+id+"-CANCEL", cancel); again.status != http.StatusOK || again.ID != c.ID {
		t.Errorf("the same again: %d %s", again.status, again.text)
	}
	b.resume()
	b.await(b.place(b.thales("witness")), "SHIPPED")
	if calls := b.calls("card-early"); len(calls) > 0 {
		t.Errorf("D1 has heard of it: %v", calls)
	}
	b.noGaps(id)
}

// Many cancels while their orders are being sent: each order ends cancelled, and D1 has
// either never heard of it or has cancelled it.
func TestCancelRacesWithDispatch(t *testing.T) {
	t.Parallel()
	b := newBank(t, halting(d1sim.CardProdRequested), with(func(s *config.Sending) { s.CallTimeout = patience }))
	b.pause()
	const n = 60
	ids := make([]string, n)
	for i := range ids {
		ids[i] = b.place(b.thales(fmt.Sprintf("race-%d", i)))
	}
	b.resume()
	var cancelling sync.WaitGroup
	for _, id := range ids {
		cancelling.Go(func() {
			if c := b.change(id, "cancel-"+id, cancel); c.status != http.StatusCreated {
				t.Errorf("cancelling: %d %s", c.status, c.text)
			}
		})
	}
	cancelling.Wait()
	unheard := 0
	for i, id := range ids {
		a := b.await(id, "CANCELLED")
		b.eventually("the cancel is accepted", func() bool { return b.changes(id)[0].State == "ACCEPTED" })
		c, request := b.changes(id)[0], fmt.Sprintf("request-race-%d", i)
		requests := b.requests(d1sim.Filter{CardID: fmt.Sprintf("card-race-%d", i)})
		switch card := b.card(request); {
		case len(requests) == 0:
			unheard++
			if c.Reason != "before-dispatch" {
				t.Errorf("D1 never heard of an order whose cancel says %+v", c)
			}
		case c.Reason == "before-dispatch" || card.Status != "CARD_PROD_CANCELED":
			t.Errorf("D1 was asked %+v and has %+v, the cancel says %+v", requests, card, c)
		}
		if len(a.view.Attention) > 0 {
			t.Errorf("attention: %s", a.text)
		}
		b.noGaps(id)
	}
	t.Logf("%d of %d orders never got to D1", unheard, n)
	b.nothingLeft()
	b.allHeard()
}

// A cancel of an order whose outcome is unknown: D1 is asked on, nothing is sent again,
// and what it says decides.
func TestCancelOfUnknownOrder(t *testing.T) {
	t.Parallel()
	t.Run("D1 does not have it", func(t *testing.T) {
		t.Parallel()
		b := newBank(t, asking())
		b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostBefore})
		sure := b.unsure()
		id := b.place(b.thales("lost"))
		b.await(id, "OUTCOME_UNKNOWN")
		c := b.want(id, cancel)
		if c.State != "REQUESTED" || !c.MayStillArrive {
			t.Errorf("at first: %+v", c)
		}
		sure()
		if c = b.changeIs(id, c.ID, "ACCEPTED"); c.Reason != "before-dispatch" || c.MayStillArrive {
			t.Errorf("at last: %+v", c)
		}
		if a := b.get(id); a.view.Status != "CANCELLED" {
			t.Errorf("the order: %s", a.text)
		}
		b.nothingLeft()
		if n := sendings(b.calls("card-lost")); n != 1 || b.cards("request-lost") != 0 {
			t.Errorf("sent %d times, %d cards", n, b.cards("request-lost"))
		}
		b.noGaps(id)
	})
	t.Run("D1 has it", func(t *testing.T) {
		t.Parallel()
		sim := halting(d1sim.CardProdRequested)
		sim.StatusLag, sim.HoldNotifications = d1sim.Duration(time.Hour), true // nobody tells for now
		b := newBank(t, sim)
		b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostAfter})
		id := b.place(b.thales("lost"))
		b.await(id, "OUTCOME_UNKNOWN")
		c := b.want(id, cancel)
		if c.State != "REQUESTED" {
			t.Errorf("at first: %+v", c)
		}
		b.settings(func(s *d1sim.Settings) { s.StatusLag = 0 })
		b.wait(d1sim.Condition{Kind: d1sim.KindChange, Requests: 1})
		if c = b.changeIs(id, c.ID, "SENT"); !c.MayStillArrive || c.OperationID == "" {
			t.Errorf("sent: %+v", c)
		}
		b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
		b.changeIs(id, c.ID, "ACCEPTED")
		b.await(id, "CANCELLED")
		if n := sendings(b.calls("card-lost")); n != 1 || b.card("request-lost").Status != "CARD_PROD_CANCELED" {
			t.Errorf("sent %d times, the card is %+v", n, b.card("request-lost"))
		}
		b.noGaps(id)
	})
}

// A cancel of an order that D1 has and can still stop, whatever D1 tells of it and however.
func TestCancelAtD1(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set    func(*d1sim.Settings)
		script *d1sim.Script
		ask    bool // nobody tells: D1 has to be asked
	}{
		"as documented":               {set: func(*d1sim.Settings) {}},
		"pending first":               {set: func(s *d1sim.Settings) { s.ChangePending, s.ChangeDelay = true, d1sim.Duration(50*time.Millisecond) }},
		"without the order's id":      {set: func(s *d1sim.Settings) { s.ChangesWithoutRequestIDs = true }},
		"without any id":              {set: func(s *d1sim.Settings) { s.NotifyWithoutRequestIDs = true }},
		"only of the change":          {set: func(s *d1sim.Settings) { s.ChangeTold = d1sim.ToldChange }},
		"only of the card":            {set: func(s *d1sim.Settings) { s.ChangeTold = d1sim.ToldCard }},
		"the order is a failed one":   {set: func(s *d1sim.Settings) { s.ChangeTold, s.CanceledStatus = d1sim.ToldCard, d1sim.OperationFailed }},
		"everything told twice":       {set: func(s *d1sim.Settings) { s.DuplicateNotifications = true }},
		"the newest first":            {set: func(s *d1sim.Settings) { s.ReverseNotifications = true }},
		"the 202 names no operation":  {set: func(*d1sim.Settings) {}, script: &d1sim.Script{Action: d1sim.ActionNoOperationID}},
		"a 500 though it was taken":   {set: func(*d1sim.Settings) {}, script: &d1sim.Script{Action: d1sim.ActionErrorAfter}},
		"the answer is lost":          {set: func(*d1sim.Settings) {}, script: &d1sim.Script{Action: d1sim.ActionLostAfter}},
		"lost, and again is too late": {set: func(s *d1sim.Settings) { s.LateChange = d1sim.LateChangeRefused }, script: &d1sim.Script{Action: d1sim.ActionLostAfter}},
		"lost, and again is the same": {set: func(s *d1sim.Settings) { s.RepeatedChange = d1sim.RepeatSame }, script: &d1sim.Script{Action: d1sim.ActionLostAfter}},
		"lost, without any id":        {set: func(s *d1sim.Settings) { s.NotifyWithoutRequestIDs = true }, script: &d1sim.Script{Action: d1sim.ActionLostAfter}},
		"no operation, no id":         {set: func(s *d1sim.Settings) { s.NotifyWithoutRequestIDs = true }, script: &d1sim.Script{Action: d1sim.ActionNoOperationID}},
		"the request is lost":         {set: func(*d1sim.Settings) {}, script: &d1sim.Script{Action: d1sim.ActionLostBefore}},
		"429 at first":                {set: func(*d1sim.Settings) {}, script: &d1sim.Script{Action: d1sim.ActionAnswer, Status: 429}},
		"503 at first":                {set: func(*d1sim.Settings) {}, script: &d1sim.Script{Action: d1sim.ActionAnswer, Status: 503, Times: 2}},
		"nothing is told":             {set: func(s *d1sim.Settings) { s.ChangeTold = d1sim.ToldNone }, ask: true},
		"and changes show": {set: func(s *d1sim.Settings) {
			s.ChangeTold, s.StatusWithChanges, s.CanceledStatus = d1sim.ToldNone, true, d1sim.OperationFailed
		}, ask: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := halting(d1sim.CardProdReady)
			c.set(&sim)
			b := newBank(t, sim)
			id := b.place(b.thales("stop"))
			b.await(id, "READY")
			if c.script != nil {
				c.script.Kind = d1sim.KindChange
				b.script(*c.script)
			}
			wanted := b.want(id, cancel)
			if wanted.State == "ACCEPTED" || !wanted.MayStillArrive {
				t.Errorf("at first: %+v", wanted)
			}
			if c.ask {
				b.changeIs(id, wanted.ID, "SENT")
				b.wait(d1sim.Condition{Cards: 1, Status: "CARD_PROD_CANCELED"})
				b.refresh(id)
			}
			if got := b.changeIs(id, wanted.ID, "ACCEPTED"); got.MayStillArrive {
				t.Errorf("at last: %+v", got)
			}
			a := b.await(id, "CANCELLED")
			if len(a.view.Attention) > 0 {
				t.Errorf("the order: %s", a.text)
			}
			if n := sendings(b.calls("card-stop")); n != 1 {
				t.Errorf("the order was sent %d times", n)
			}
			b.nothingLeft()
			b.allHeard()
			b.noGaps(id)
		})
	}
}

// D1 may refuse what it has done already: after an answer that was lost, its no to the
// same again is not the last word.
func TestRefusalOfARepeat(t *testing.T) {
	t.Parallel()
	sim := halting(d1sim.CardProdReady)
	sim.LateChange = d1sim.LateChangeRefused
	b := newBank(t, sim)
	id := b.place(b.thales("twice"))
	b.await(id, "READY")
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications = true })
	b.script(d1sim.Script{Kind: d1sim.KindChange, Action: d1sim.ActionLostAfter})
	c := b.want(id, cancel)
	b.eventually("the second try is refused", func() bool { return slices.Contains(b.attempts(id), "change refused conflict") })
	if c = b.changeIs(id, c.ID, "SENT"); !c.MayStillArrive {
		t.Errorf("the change: %+v", c)
	}
	b.nothingLeft()
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
	b.changeIs(id, c.ID, "ACCEPTED")
	b.await(id, "CANCELLED")
	b.allHeard()
	b.noGaps(id)
}

// An order whose request gets lost, of a card that was ordered and cancelled a moment
// before: what D1 shows of the change cannot be about it, and it is sent again.
func TestOrderAfterACancelledOneIsSentAgain(t *testing.T) {
	t.Parallel()
	for name, latest := range map[string]bool{"all is shown": false, "the latest alone": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := halting(d1sim.CardProdReady)
			sim.Repeat, sim.StatusWithChanges, sim.StatusLatestOnly = d1sim.RepeatSecondCard, true, latest
			b := newBank(t, sim)
			first := b.place(b.thales("first"))
			b.await(first, "READY")
			b.changeIs(first, b.want(first, cancel).ID, "ACCEPTED")
			b.await(first, "CANCELLED")
			b.allHeard()
			b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostBefore})
			again := b.thales("first")
			again["issuerRequestId"] = "request-again"
			b.await(b.place(again), "READY")
			b.oneCard("request-again")
		})
	}
}

// A cancel that the centre refuses: the order goes on, and the change says so.
func TestCancelRefusedByStage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		late, told, reason string
	}{
		"at once":              {d1sim.LateChangeRefused, d1sim.ToldAll, "refused-by-bureau"},
		"later":                {d1sim.LateChangeNotified, d1sim.ToldAll, "refused-by-bureau"},
		"nobody says so":       {d1sim.LateChangeNotified, d1sim.ToldNone, "shipped-first"},
		"nobody says anything": {d1sim.LateChangeNotified, d1sim.ToldCard, "shipped-first"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := halting(d1sim.CardProdReady)
			sim.ChangeUntil.Cancel, sim.LateChange, sim.ChangeTold = d1sim.DataPrepared, c.late, c.told
			b := newBank(t, sim)
			id := b.place(b.thales("late"))
			b.await(id, "READY")
			wanted := b.want(id, cancel)
			if c.reason == "shipped-first" {
				b.changeIs(id, wanted.ID, "SENT")
				b.goOn()
			}
			got := b.changeIs(id, wanted.ID, "REFUSED")
			if got.Reason != c.reason || !got.MayStillArrive {
				t.Errorf("refused: %+v", got)
			}
			if c.late == d1sim.LateChangeRefused && !slices.Contains(b.attempts(id), "change refused conflict") {
				t.Errorf("attempts %v", b.attempts(id))
			}
			b.goOn()
			if a := b.await(id, "SHIPPED"); len(a.view.Attention) > 0 {
				t.Errorf("the order: %s", a.text)
			}
			b.nothingLeft()
			b.noGaps(id)
		})
	}
}

func TestRedirect(t *testing.T) {
	t.Parallel()
	b := newBank(t, halting(d1sim.CardProdReady))
	id := b.place(b.thales("moved"))
	b.await(id, "READY")
	if city := b.card("request-moved").DeliveryCity; city != "Paris" {
		t.Fatalf("the card goes to %q", city)
	}
	wrong := redirect("Ghent")
	wrong["newDeliveryAddress"].(body)["countryCode"] = "XX"
	if c := b.change(id, "wrong", wrong); c.status != http.StatusUnprocessableEntity && c.status != http.StatusBadRequest ||
		len(c.Errors) != 1 || c.Errors[0].Pointer != "/newDeliveryAddress/countryCode" {
		t.Errorf("a wrong address: %d %s", c.status, c.text)
	}
	c := b.want(id, redirect("Ghent"))
	if c.MayStillArrive {
		t.Errorf("a redirect says that the card may still arrive: %+v", c)
	}
	b.changeIs(id, c.ID, "ACCEPTED")
	if card := b.card("request-moved"); card.DeliveryCity != "Ghent" || card.Accelerated {
		t.Errorf("the card: %+v", card)
	}
	both := redirect("Bruges")
	both["type"] = "ACCELERATE_AND_REDIRECT"
	b.changeIs(id, b.want(id, both).ID, "ACCEPTED")
	if card := b.card("request-moved"); card.DeliveryCity != "Bruges" || !card.Accelerated {
		t.Errorf("the card: %+v", card)
	}
	b.goOn()
	if a := b.await(id, "SHIPPED"); len(a.view.Attention) > 0 {
		t.Errorf("the order: %s", a.text)
	}
	if got := b.changes(id); len(got) != 2 {
		t.Errorf("changes %+v", got)
	}
	b.noGaps(id)

	// Before dispatch it is done here: D1 only ever hears of the new address.
	b.pause()
	early := b.place(b.thales("moved-early"))
	if c := b.want(early, redirect("Ghent")); c.State != "ACCEPTED" || c.Reason != "before-dispatch" {
		t.Errorf("before dispatch: %+v", c)
	}
	b.resume()
	b.await(early, "SHIPPED")
	if card := b.card("request-moved-early"); card.DeliveryCity != "Ghent" || slices.Contains(b.calls("card-moved-early"), "change 202") {
		t.Errorf("the card: %+v, D1 was asked %v", card, b.calls("card-moved-early"))
	}
}

// What no notification tells of a redirect, the order's own way cannot: D1 is asked.
func TestRedirectThatNobodyTellsOf(t *testing.T) {
	t.Parallel()
	sim := halting(d1sim.CardProdReady)
	sim.ChangeTold, sim.StatusWithChanges = d1sim.ToldNone, true
	b := newBank(t, sim)
	id := b.place(b.thales("untold"))
	b.await(id, "READY")
	c := b.changeIs(id, b.want(id, redirect("Ghent")).ID, "SENT")
	b.refresh(id)
	b.changeIs(id, c.ID, "ACCEPTED")
	// The latest operation, which hides the order's own, is not taken for it.
	b.settings(func(s *d1sim.Settings) { s.StatusLatestOnly = true })
	b.refresh(id)
	b.nothingLeft()
	if a := b.get(id); a.view.Status != "READY" || len(a.view.Attention) > 0 {
		t.Errorf("the order: %s", a.text)
	}
	b.noGaps(id)
}

func TestAccelerateBeforeDispatch(t *testing.T) {
	t.Parallel()
	b := newBank(t, halting(d1sim.CardProdReady))
	b.pause()
	id := b.place(b.thales("soon"))
	if c := b.want(id, body{"type": "ACCELERATE"}); c.State != "REQUESTED" {
		t.Errorf("before dispatch: %+v", c)
	}
	b.resume()
	b.changeIs(id, b.changes(id)[0].ID, "ACCEPTED")
	if !b.card("request-soon").Accelerated {
		t.Errorf("the card: %+v", b.card("request-soon"))
	}
	if calls := b.calls("card-soon"); len(calls) < 2 || calls[0] != "order 202" || calls[1] != "change 202" {
		t.Errorf("D1 was asked %v", calls)
	}
}

// A batch is cancelled while its orders are on the wire: what D1 turns out to have, it is
// asked to cancel, though nobody wanted a change by name.
func TestBatchCancelTooLate(t *testing.T) {
	t.Parallel()
	sim := halting(d1sim.CardProdReady)
	sim.AnswerDelay, sim.HoldNotifications = d1sim.Duration(5*time.Second), true
	b := newBank(t, sim, with(func(s *config.Sending) { s.CallTimeout = patience }))
	file := b.lines(b.thales("batch-1"), b.thales("batch-2"), b.thales("batch-3"))
	made := b.upload("", "batch-late", "application/x-ndjson", strings.NewReader(file), nil)
	b.wait(d1sim.Condition{Kind: d1sim.KindProduction, Requests: 3})
	if got := b.act(made.ID, "cancel"); got.status != http.StatusOK || got.TooLate != 3 {
		t.Fatalf("cancelling the batch: %d %s", got.status, got.text)
	}
	b.settings(func(s *d1sim.Settings) { s.AnswerDelay, s.HoldNotifications = 0, false })
	for _, r := range b.results(made.ID, "") {
		b.await(r.Order, "CANCELLED")
		b.eventually("its cancel is accepted", func() bool {
			list := b.changes(r.Order)
			return len(list) == 1 && list[0].Type == "CANCEL" && list[0].State == "ACCEPTED" && list[0].OperationID != ""
		})
		if a := b.get(r.Order); len(a.view.Attention) > 0 {
			t.Errorf("attention: %s", a.text)
		}
		b.noGaps(r.Order)
	}
	b.allHeard()
}

func TestChangeWhileD1IsDown(t *testing.T) {
	t.Parallel()
	b := newBank(t, halting(d1sim.CardProdReady))
	id := b.place(b.thales("down"))
	b.await(id, "READY")
	b.settings(func(s *d1sim.Settings) { s.Paused = true })
	c := b.want(id, cancel)
	b.eventually("it was tried in vain", func() bool { return slices.Contains(b.attempts(id), "change unknown unavailable") })
	if got := b.changes(id); len(got) != 1 || got[0].State != "REQUESTED" {
		t.Errorf("changes %+v", got)
	}
	if other := b.change(id, "other", redirect("Ghent")); other.status != http.StatusConflict {
		t.Errorf("another one meanwhile: %d %s", other.status, other.text)
	}
	b.settings(func(s *d1sim.Settings) { s.Paused = false })
	b.changeIs(id, c.ID, "ACCEPTED")
	b.await(id, "CANCELLED")
	b.noGaps(id)
}

func TestChangeOfShippedOrder(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	id := b.place(b.thales("gone"))
	b.await(id, "SHIPPED")
	for _, content := range []body{cancel, redirect("Ghent")} {
		c := b.change(id, "late-"+content["type"].(string), content)
		if c.status != http.StatusConflict || !strings.Contains(c.text, "already-shipped") {
			t.Errorf("%v: %d %s", content["type"], c.status, c.text)
		}
	}
	if n := b.requests(d1sim.Filter{Kind: d1sim.KindChange}); len(n) > 0 {
		t.Errorf("D1 was asked %+v", n)
	}
}

// A change names no secret: its address is nowhere in the log.
func TestChangeIsNotLogged(t *testing.T) {
	t.Parallel()
	b := newBank(t, halting(d1sim.CardProdReady))
	id := b.place(b.thales("quiet"))
	b.await(id, "READY")
	b.changeIs(id, b.want(id, redirect("Zzyzxville")).ID, "ACCEPTED")
	for _, secret := range []string{"Elsewhere", "Zzyzxville"} {
		if b.logged(secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}
