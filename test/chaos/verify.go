package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"cardorder/client"
	"cardorder/internal/d1sim"
)

// verdict is what is wrong after all.
type verdict struct {
	dir     string
	twoByD1 map[string]bool      // requests for which D1 made two cards on its own
	asked   map[string]time.Time // when D1 last heard of a request

	mu                   sync.Mutex
	lost, doubled, wrong int
	cancelled            int
	changes              map[string]int
	attention            map[string]int
	told                 int
}

// tolerated says how many faults are told in full: one is often a thousand.
const tolerated = 20

func (v *verdict) add(count *int, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	*count++
	if v.told++; v.told <= tolerated {
		say("FAULT: "+format, args...)
	}
}

// settle waits until nothing is under way any more, with what people do after trouble:
// they resume the lane, and retry what was refused along with everything. What D1 has told
// and nobody heard, the service finds by itself: nobody refreshes anything.
func (c *cluster) settle(ctx context.Context, l *load) error {
	var errs []error
	if l.bureau.attended {
		errs = append(errs, l.resume(ctx))
	}
	for {
		errs = append(errs, c.quiet(ctx, l))
		n, err := l.retryRejected(ctx)
		if errs = append(errs, err); n == 0 {
			return errors.Join(errs...)
		}
		say("%d orders were rejected along with others and are tried again", n)
	}
}

// quiet waits until every caller has its answer, nothing is left to be sent, D1 has told
// everything, and every order has ended but those that were rejected.
func (c *cluster) quiet(ctx context.Context, l *load) error {
	ctx, cancel := context.WithTimeout(ctx, l.settleLimit)
	defer cancel()
	quiet, told := 0, time.Now()
	for {
		what, err := c.underWay(ctx)
		if waiting := l.stillWaiting(); err == nil && waiting > 0 {
			what = strings.TrimSuffix(fmt.Sprintf("%d callers without an answer, %s", waiting, what), ", ")
		}
		switch {
		case err != nil:
			what, quiet = err.Error(), 0
		case what != "":
			quiet = 0
		default:
			// Twice: between two steps nothing may seem to be under way.
			if quiet++; quiet == 2 {
				return nil
			}
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			say("there are still %s", what)
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return fmt.Errorf("it did not settle within %v: %s", l.settleLimit, what)
		}
	}
}

// underWay tells what is still going on; "" for nothing.
func (c *cluster) underWay(ctx context.Context) (string, error) {
	for _, query := range []string{
		`SELECT count(*), 'messages to be sent, the first one ' || (array_agg(kind || ' of class ' || class || ' of order ' || order_id ||
			' due for ' || date_trunc('second', now() - greatest(run_at, leased_until)) ||
			CASE WHEN claim_token IS NOT NULL THEN ', claimed' ELSE '' END || CASE WHEN maybe_sent_at IS NOT NULL THEN ', unknown' ELSE '' END ||
			CASE WHEN EXISTS (SELECT FROM outbox e WHERE e.card_id = m.card_id AND e.id < m.id) THEN ', behind another of its card' ELSE '' END
			ORDER BY run_at))[1] FROM outbox m`,
		`SELECT count(*), 'notifications to be applied, of ' || count(DISTINCT operation_id) || ' operations, the first one ' ||
			(array_agg(outcome || ' of ' || operation_id ORDER BY id))[1]
			FROM notifications WHERE outcome IN ('parked', 'unapplied')`,
		`SELECT count(*), 'orders that have not ended, the first one ' || (array_agg(order_id || ', ' || status || ' ' || attention::text || ', asked about ' || checks ||
			' times, next in ' || date_trunc('second', next_check_at - now()) ORDER BY next_check_at))[1]
			FROM order_state WHERE ended_at IS NULL AND status <> 'REJECTED'`,
		`SELECT count(*), 'changes of orders that are open, the first one ' || (array_agg(c.type || ' ' || c.state || ' of order ' || c.order_id ORDER BY c.id))[1]
			FROM order_changes c JOIN order_state s USING (issuer_id, order_id)
			WHERE c.state IN ('REQUESTED', 'SENT') AND s.status <> 'REJECTED'`, // those wait for the retry of their order
	} {
		n, what, err := c.database.count(ctx, query)
		if err != nil || n > 0 {
			return fmt.Sprintf("%d %s", n, what), err
		}
	}
	switch err := c.management.Wait(ctx, d1sim.Condition{Idle: true}, time.Millisecond); {
	case errors.Is(err, d1sim.ErrNotMet):
		return "cards or notifications of D1", nil
	default:
		return "", err
	}
}

// verify holds every order that was placed against what D1 made.
func (c *cluster) verify(ctx context.Context, l *load, v *verdict) error {
	if err := l.readBatches(ctx); err != nil {
		return err
	}
	made, err := c.management.Cards(ctx)
	if err != nil {
		return err
	}
	cards := make(map[string][]d1sim.Card)
	for _, card := range made {
		cards[card.IssuerRequestID] = append(cards[card.IssuerRequestID], card)
	}
	asked, err := c.management.History(ctx, d1sim.Filter{Kind: d1sim.KindProduction})
	if err != nil {
		return err
	}
	v.twoByD1, v.asked = make(map[string]bool), make(map[string]time.Time)
	for _, r := range asked {
		v.asked[r.IssuerRequestID] = r.Time
		if r.Script == d1sim.ActionTwoOperations {
			v.twoByD1[r.IssuerRequestID] = true
		}
	}
	known := make(map[string]bool)
	requests := make(map[string]bool)
	var checks sync.WaitGroup
	var mu sync.Mutex
	free := make(chan struct{}, 4)
	for _, p := range l.orders {
		if p.id == "" {
			v.add(&v.lost, "nobody could tell what became of %s %s", p.order.IssuerRequestID, p.key)
			continue
		}
		if known[p.id] {
			v.add(&v.wrong, "two requests became one order, %s", p.id)
			continue
		}
		known[p.id] = true
		free <- struct{}{}
		checks.Go(func() {
			defer func() { <-free }()
			requestID := c.check(ctx, l, v, p, cards)
			mu.Lock()
			defer mu.Unlock()
			requests[requestID] = true
		})
	}
	checks.Wait()
	for requestID, list := range cards {
		if !requests[requestID] {
			v.add(&v.wrong, "%d cards for %q, which nobody ordered", len(list), requestID)
		}
	}
	stored, _, err := c.database.count(ctx, `SELECT count(*), '' FROM orders`)
	if err != nil {
		return err
	}
	if stored != len(known) {
		v.add(&v.wrong, "%d orders are stored, %d were placed", stored, len(known))
	}
	if what, err := c.underWay(ctx); err != nil || what != "" {
		v.add(&v.wrong, "in the end there are still %s %v", what, err)
	}
	for _, r := range c.replicas {
		for _, death := range r.deaths {
			v.add(&v.wrong, "%s ended and nobody had asked it to: %s", r.name, death)
		}
	}
	return c.readLogs(v)
}

// statusOf is where an order stands when its card stands there.
func statusOf(card d1sim.Card) client.Status {
	if card.OperationStatus == d1sim.OperationFailed && card.Status != d1sim.CardProdCanceled {
		return client.StatusFailed
	}
	return map[string]client.Status{
		d1sim.CardProdRequested: client.StatusSubmitted, d1sim.DataPrepared: client.StatusDataPrepared,
		d1sim.CardProdReady: client.StatusReady, d1sim.CardProdOngoing: client.StatusInProduction,
		d1sim.CardProdDone: client.StatusProduced, d1sim.CardShipped: client.StatusShipped, d1sim.CardProdCanceled: client.StatusCancelled,
		d1sim.DataException: client.StatusException, d1sim.CardProdException: client.StatusException,
	}[card.Status]
}

// expectedAttention lists what may call for a human after a run in which nothing
// went wrong but what has to: cards that D1 could not make.
var expectedAttention = []string{"failed", "exception"}

// check looks at one order and returns the request by which D1 knows it.
func (c *cluster) check(ctx context.Context, l *load, v *verdict, p *placed, cards map[string][]d1sim.Card) (requestID string) {
	var o *client.Order
	var timeline []client.TimelineEntry
	err := l.insist(ctx, func(cl *client.Client) (err error) {
		if o, err = cl.Order(ctx, p.id); err == nil {
			timeline, err = cl.Timeline(ctx, p.id)
		}
		return err
	})
	if err != nil {
		v.add(&v.lost, "order %s was accepted and is not there: %v", p.id, err)
		return p.order.IssuerRequestID
	}
	faults := 0
	fault := func(count *int, format string, args ...any) {
		faults++
		v.add(count, "order %s (%s) "+format, append([]any{o.ID, o.IssuerRequestID}, args...)...)
	}
	var flags []string
	for _, a := range o.Attention {
		flags = append(flags, a.Code)
	}
	flagged := slices.Contains(flags, "second-card")
	list := cards[o.IssuerRequestID]
	switch {
	case len(list) > 1:
		if !v.twoByD1[o.IssuerRequestID] || len(list) > 2 {
			fault(&v.doubled, "has %d cards", len(list))
		}
		if !flagged {
			fault(&v.wrong, "has %d cards and is not marked", len(list))
		}
	case flagged:
		fault(&v.wrong, "is marked second-card and has %d cards", len(list))
	}
	switch {
	case o.Status == client.StatusCancelled && len(list) == 0:
		v.mu.Lock()
		v.cancelled++
		v.mu.Unlock()
		if p.batch == "" && (p.want == nil || p.want.Type != client.ChangeCancel) {
			fault(&v.wrong, "is cancelled and nobody wanted that")
		}
	case len(list) == 0:
		fault(&v.lost, "has no card: %s %v", o.Status, flags)
	case len(list) > 1 && l.bureau.latestOnly(): // D1 shows only one of them, perhaps not the order's
	case !slices.ContainsFunc(list, func(card d1sim.Card) bool { return card.OperationID == o.OperationID && statusOf(card) == o.Status }):
		fault(&v.wrong, "is %s of operation %q, and D1 says %s %s of %s", o.Status, o.OperationID, list[0].Status, list[0].OperationStatus, list[0].OperationID)
	}
	if p.order.IssuerRequestID != "" && p.order.IssuerRequestID != o.IssuerRequestID {
		fault(&v.wrong, "was placed as %s", p.order.IssuerRequestID)
	}
	seq := 0
	var last client.Status
	for _, entry := range timeline {
		if e := entry.Event; e != nil {
			if seq++; e.Seq != seq {
				fault(&v.wrong, "has a gap in its timeline before event %d", e.Seq)
				seq = e.Seq
			}
			last = e.Status
		}
	}
	if seq != o.Version || last != o.Status {
		fault(&v.wrong, "is %s of version %d, its timeline ends with %s of version %d", o.Status, o.Version, last, seq)
	}
	unanswered := false
	if p.want != nil && p.want.id != "" {
		ch := c.checkChange(ctx, l, v, p, o, list, fault)
		unanswered = ch != nil && ch.State == client.ChangeExpired
	}
	for _, flag := range flags {
		v.mu.Lock()
		v.attention[flag]++
		v.mu.Unlock()
		excused := p.batch != "" && flag == "stop-too-late" || unanswered && flag == "change-unanswered"
		if flag != "second-card" && !excused && !slices.Contains(expectedAttention, flag) {
			fault(&v.wrong, "calls for a human: %s", flag)
		}
	}
	if faults > 0 {
		c.keepEvidence(ctx, v, o, timeline, list)
	}
	return o.IssuerRequestID
}

// checkChange holds what became of a change against what D1 did.
func (c *cluster) checkChange(
	ctx context.Context, l *load, v *verdict, p *placed, o *client.Order, cards []d1sim.Card, fault func(*int, string, ...any),
) *client.Change {
	var ch *client.Change
	err := l.insist(ctx, func(cl *client.Client) (err error) {
		ch, err = cl.Change(ctx, p.id, p.want.id)
		return err
	})
	if err != nil {
		fault(&v.lost, "lacks the change %s: %v", p.want.id, err)
		return nil
	}
	v.mu.Lock()
	v.changes[strings.Join(strings.Fields(fmt.Sprintf("%s %s %s", ch.Type, ch.State, ch.Reason)), " ")]++
	v.mu.Unlock()
	card := func(is func(d1sim.Card) bool) bool { return slices.ContainsFunc(cards, is) }
	switch accepted := ch.State == client.ChangeAccepted; {
	case ch.State == client.ChangeRequested || ch.State == client.ChangeSent:
		fault(&v.wrong, "has a change that is %s for ever", ch.State)
	case !accepted: // which says nothing: D1 may have done it the first time, and refused the second
	case ch.Reason == "before-dispatch" && ch.Type == client.ChangeCancel:
		if len(cards) > 0 || v.asked[o.IssuerRequestID].After(ch.UpdatedAt) {
			fault(&v.wrong, "was cancelled before D1 heard of it, and D1 heard of it")
		}
	case ch.Type == client.ChangeCancel:
		if o.Status != client.StatusCancelled || !card(func(card d1sim.Card) bool { return card.Status == d1sim.CardProdCanceled }) {
			fault(&v.wrong, "is %s, and its cancel was accepted", o.Status)
		}
	case ch.Type == client.ChangeRedirect:
		if !card(func(card d1sim.Card) bool { return card.DeliveryCity == elsewhere }) {
			fault(&v.wrong, "goes elsewhere than where it was redirected to")
		}
	case ch.Type == client.ChangeAccelerate:
		if !card(func(card d1sim.Card) bool { return card.Accelerated }) {
			fault(&v.wrong, "was not accelerated")
		}
	}
	return ch
}

// keepEvidence writes down what is known of an order that is not right.
func (c *cluster) keepEvidence(ctx context.Context, v *verdict, o *client.Order, timeline []client.TimelineEntry, cards []d1sim.Card) {
	asked, err := c.management.History(ctx, d1sim.Filter{CardID: o.CardID})
	if err != nil {
		asked = nil
	}
	text, err := json.MarshalIndent(map[string]any{"order": o, "timeline": timeline, "cards": cards, "requestsToD1": asked}, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(v.dir, "order-"+o.ID+".json"), text, 0o600)
	}
	if err != nil {
		say("writing evidence: %v", err)
	}
}

var digits = regexp.MustCompile(`[0-9](?:[ -]?[0-9]){12,18}`)

// readLogs looks in everything that was logged for what may not be there, and for
// panics.
func (c *cluster) readLogs(v *verdict) error {
	logs, err := filepath.Glob(filepath.Join(c.dir, "*.log"))
	if err != nil {
		return err
	}
	ofDatabase, err := filepath.Glob(filepath.Join(c.database.server.Dir(), "*.log*"))
	if err != nil {
		return err
	}
	for _, path := range append(logs, ofDatabase...) {
		if err := readLog(path, v); err != nil {
			return err
		}
	}
	return nil
}

func readLog(path string, v *verdict) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		for _, run := range digits.FindAllString(line, -1) {
			plain := strings.NewReplacer(" ", "", "-", "").Replace(run)
			for _, number := range cardNumbers {
				if strings.Contains(plain, number) {
					v.add(&v.wrong, "line %d of %s holds a card number", n, path)
				}
			}
		}
		if strings.Contains(line, cardholder) || strings.Contains(line, street) {
			v.add(&v.wrong, "line %d of %s holds personal data", n, path)
		}
		if strings.Contains(line, `"panic`) || strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			v.add(&v.wrong, "line %d of %s tells of a panic", n, path)
		}
	}
	return lines.Err()
}
