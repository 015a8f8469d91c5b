package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"cardorder/client"
)

// The networks' published numbers, and a name and a street that may stand in no log.
var (
	cardNumbers = []string{"4111111111111111", "5555555555554444"}
	cardholder  = "ADA LOVELACE-EXAMPLE"
	street      = "1 Rue de la Paix"
)

// placed is an order that core banking placed, as core banking remembers it.
type placed struct {
	order *client.NewOrder
	key   string  // Idempotency-Key, "" without one
	batch string  // id of the batch it came with, "" without one
	id    string  // what the service calls it; "" while that is not known
	want  *wanted // a change of it that somebody wants, nil for none
}

// wanted is a change of an order that is on its way, or still here.
type wanted struct {
	client.NewChange
	after  time.Duration // since the order is known to be there
	id     string        // what the service calls it; "" where it was refused at once
	denied string        // why it was
}

// load is core banking: several clients that place orders without a break, and send
// whatever was not answered again, with the same keys and perhaps to another replica.
type load struct {
	cluster *cluster
	clients []*client.Client
	bureau  bureau
	rate    float64
	fail    func(string, ...any)

	settleLimit time.Duration

	mu      sync.Mutex
	orders  []*placed
	batches []string // ids of all that were uploaded
	retries int
	working sync.WaitGroup
	waiting int // for an answer that says what became of an order
}

// run places orders for a while; what it has begun then goes on until settle.
func (l *load) run(whole context.Context, seed uint64, during time.Duration) {
	ctx, cancel := context.WithTimeout(whole, during)
	defer cancel()
	// A replica that dies leaves its upload closed to others for up to a minute.
	early, end := context.WithTimeout(ctx, max(during/2, during-time.Minute))
	defer end()
	l.working.Go(func() { l.upload(early, whole, random(seed, "batches")) })
	r, changes := random(seed, "orders"), random(seed, "changes")
	for n := 0; sleep(ctx, time.Duration(r.ExpFloat64()*float64(time.Second)/l.rate)); n++ {
		o, err := l.newOrder(r, n)
		if err != nil {
			l.fail("making an order: %v", err)
			return
		}
		p := &placed{order: o}
		switch r.IntN(4) {
		case 0:
			p.key = fmt.Sprintf("chaos-key-%d", n)
		case 1:
			p.key, o.IssuerRequestID = fmt.Sprintf("chaos-key-%d", n), fmt.Sprintf("chaos-request-%d", n)
		default:
			o.IssuerRequestID = fmt.Sprintf("chaos-request-%d", n)
		}
		p.want = newChange(changes, n, o)
		l.mu.Lock()
		l.orders = append(l.orders, p)
		l.mu.Unlock()
		times := 1
		if r.IntN(15) == 0 {
			times = 2 // an impatient caller, at the same moment
		}
		for i := range times {
			l.working.Go(func() {
				if l.place(whole, p) && i == 0 && p.want != nil {
					l.change(whole, p)
				}
			})
		}
	}
}

// newOrder makes an order of a new card, or now and then another one of a card that
// was ordered before.
func (l *load) newOrder(r *rand.Rand, n int) (*client.NewOrder, error) {
	number := pick(r, cardNumbers...)
	address := client.Address{FirstName: "Ada", LastName: cardholder, Line1: street, ZipCode: "75002", City: "Paris", CountryCode: "FR"}
	o := &client.NewOrder{
		CardID: fmt.Sprintf("chaos-card-%d", n), ConsumerID: fmt.Sprintf("chaos-consumer-%d", n), CardProductID: "gold-debit",
		DistributionChannel: client.ChannelThales,
		Services:            client.Services{Issuance: client.IssuanceCreation, Delivery: "POST"},
		PaymentApplication:  &client.PaymentApplication{Config: "visa-debit", ODAKeyIndex: "01", DerivationKeyIndex: "01"},
		Shipment:            &client.Shipment{DeliveryAddress: &address},
		Urgent:              r.IntN(10) == 0,
	}
	if r.IntN(5) == 0 {
		o.DistributionChannel, o.PersoStation = client.ChannelInstant, "station-1"
		o.Services.Delivery, o.Shipment = "", nil
	}
	if again, earlier := r.IntN(20) == 0, r.IntN(n+1); again {
		l.orderAgain(o, earlier)
	}
	if r.IntN(3) == 0 {
		o.SensitiveData = &client.SensitiveData{PAN: number, Exp: "3012", Name: cardholder, CVV2: "123"}
		return o, nil
	}
	var err error
	o.EncryptedData, err = l.cluster.encrypter.Encrypt(time.Now(), []byte(`{"pan":"`+number+`","exp":"3012","name":"`+cardholder+`"}`))
	return o, err
}

// orderAgain makes o an order of a card that has one. Without our ids in D1's word
// nobody could tell which of the two it means; and where it is not known whether the
// first one has arrived, that one would be the duplicate.
func (l *load) orderAgain(o *client.NewOrder, earlier int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.bureau.ids || earlier >= len(l.orders) || l.orders[earlier].id == "" {
		return
	}
	o.CardID = l.orders[earlier].order.CardID
	o.Services.Issuance = client.IssuanceReplacement
	o.DuplicateOverride = &client.DuplicateOverride{Reason: "the card was damaged"}
}

// place places an order, again and again until it is known to be there, and tells whether
// it is.
func (l *load) place(ctx context.Context, p *placed) bool {
	l.wait(1)
	defer l.wait(-1)
	var answer client.Placed
	err := l.insist(ctx, func(c *client.Client) (err error) {
		answer, err = c.PlaceOrder(ctx, p.order, p.key)
		return err
	})
	if err != nil {
		l.fail("placing %s %s: %v", p.order.IssuerRequestID, p.key, err)
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.id != "" && p.id != answer.ID {
		l.fail("one request, two orders: %s and %s", p.id, answer.ID)
	}
	p.id = answer.ID
	return true
}

// elsewhere is where redirected cards go.
const elsewhere = "Lyon"

// newChange is what somebody wants of an order a moment later, nil for nothing, as mostly.
func newChange(r *rand.Rand, n int, o *client.NewOrder) *wanted {
	kind, after := pick(r, client.ChangeCancel, client.ChangeCancel, client.ChangeRedirect, client.ChangeAccelerate), time.Duration(r.ExpFloat64()*float64(time.Second))
	if r.IntN(6) > 0 {
		return nil
	}
	w := &wanted{NewChange: client.NewChange{Type: kind, IdempotencyKey: fmt.Sprintf("chaos-change-%d", n)}, after: after}
	switch {
	case kind != client.ChangeRedirect:
	case o.Shipment == nil: // it goes to no address
		w.Type = client.ChangeCancel
	default:
		address := *o.Shipment.DeliveryAddress
		address.City, address.ZipCode = elsewhere, "69001"
		w.NewDeliveryAddress = &address
	}
	return w
}

// change has an order changed, again and again until it is known what becomes of that.
func (l *load) change(ctx context.Context, p *placed) {
	l.wait(1)
	defer l.wait(-1)
	sleep(ctx, p.want.after)
	var answer client.PlacedChange
	err := l.insist(ctx, func(c *client.Client) (err error) {
		answer, err = c.ChangeOrder(ctx, p.id, p.want.NewChange)
		return err
	})
	p.want.id = answer.ID
	switch problem, ok := errors.AsType[*client.Problem](err); {
	case err == nil:
	case ok && (problem.Type == client.ProblemAlreadyShipped || problem.Type == client.ProblemNotChangeable):
		p.want.denied = problem.Type
	default:
		l.fail("changing order %s: %v", p.id, err)
	}
}

func (l *load) wait(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting += n
}

func (l *load) stillWaiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting
}

// insist calls random replicas until one of them says yes, or no for a reason that
// will not pass.
func (l *load) insist(ctx context.Context, call func(*client.Client) error) error {
	for {
		err := call(l.clients[rand.N(len(l.clients))])
		if err == nil {
			return nil
		}
		if p, ok := errors.AsType[*client.Problem](err); ok && p.Status < 500 && p.Status != 429 && p.Type != client.ProblemBatchInProgress && p.Type != client.ProblemIncompleteBody {
			return err
		}
		l.mu.Lock()
		l.retries++
		l.mu.Unlock()
		if !sleep(ctx, 20*time.Millisecond+rand.N(300*time.Millisecond)) {
			return err
		}
	}
}

// resume ends a pause, and has breakers and a stopped lane tried at once.
func (l *load) resume(ctx context.Context) error {
	return l.insist(ctx, func(c *client.Client) error {
		_, err := c.ResumeLane(ctx, client.LaneD1)
		return err
	})
}

// retryRejected has orders tried again that D1 refused when it refused everything,
// and returns how many there were.
func (l *load) retryRejected(ctx context.Context) (n int, err error) {
	list, err := l.list(ctx, client.OrderFilter{Statuses: []client.Status{client.StatusRejected}, Limit: 200})
	if err != nil {
		return 0, err
	}
	for _, o := range list {
		err := l.insist(ctx, func(c *client.Client) error {
			// Meanwhile its card may have been ordered again.
			_, err := c.Retry(ctx, o.ID, client.Retry{DuplicateOverride: &client.DuplicateOverride{Reason: "both are wanted"}})
			if p, ok := errors.AsType[*client.Problem](err); ok && p.Type == client.ProblemNotRetryable {
				return nil // an answer that was lost had done it
			}
			return err
		})
		if err != nil {
			return n, fmt.Errorf("retrying %s: %w", o.ID, err)
		}
		n++
	}
	return n, nil
}

func (l *load) list(ctx context.Context, f client.OrderFilter) (list []*client.Order, err error) {
	err = l.insist(ctx, func(c *client.Client) error {
		list = nil
		for o, err := range c.AllOrders(ctx, f) {
			if err != nil {
				return err
			}
			list = append(list, o)
		}
		return nil
	})
	return list, err
}

// upload begins to upload a batch now and then, until ctx ends.
func (l *load) upload(ctx, whole context.Context, r *rand.Rand) {
	for n := 0; sleep(ctx, time.Second+time.Duration(r.Int64N(int64(4*time.Second)))); n++ {
		var file bytes.Buffer
		rows := 20 + r.IntN(150)
		for i := range rows {
			o, err := l.newOrder(r, 1_000_000*(n+1)+i)
			if err != nil {
				l.fail("making an order: %v", err)
				return
			}
			o.CardID = fmt.Sprintf("chaos-batch-%d-%d", n, i)
			o.IssuerRequestID, o.DuplicateOverride = o.CardID, nil
			if o.SensitiveData != nil { // not in batches
				o.SensitiveData = nil
				if o.EncryptedData, err = l.cluster.encrypter.Encrypt(time.Now(), []byte(`{"pan":"`+cardNumbers[0]+`","exp":"3012","name":"`+cardholder+`"}`)); err != nil {
					l.fail("encrypting: %v", err)
					return
				}
			}
			line, err := json.Marshal(o)
			if err != nil {
				l.fail("writing an order: %v", err)
				return
			}
			file.Write(append(line, '\n'))
		}
		u := client.Upload{
			IdempotencyKey: fmt.Sprintf("chaos-batch-%d", n), Gzip: r.IntN(2) == 0, Hold: r.IntN(3) == 0,
			Open: func() (io.ReadCloser, error) {
				return &slowFile{ctx: whole, r: bytes.NewReader(file.Bytes()), pause: 2 * time.Second / time.Duration(rows)}, nil
			},
		}
		changes := []string{}
		for range r.IntN(4) {
			changes = append(changes, pick(r, "hold", "release", "cancel"))
		}
		pauses := between(r, [2]time.Duration{100 * time.Millisecond, 2 * time.Second})
		l.working.Go(func() { l.batch(whole, u, rows, changes, pauses) })
	}
}

// slowFile is a file that comes slowly, so that an upload meets with trouble.
type slowFile struct {
	ctx   context.Context
	r     *bytes.Reader
	pause time.Duration
}

func (f *slowFile) Read(p []byte) (int, error) {
	if !sleep(f.ctx, f.pause) {
		return 0, f.ctx.Err()
	}
	return f.r.Read(p[:min(len(p), 2048)])
}

func (f *slowFile) Close() error { return nil }

// batch uploads a file and then lets people hold, release and cancel it. In the end
// it is released, unless it was cancelled.
func (l *load) batch(ctx context.Context, u client.Upload, rows int, changes []string, pauses time.Duration) {
	l.wait(1)
	defer l.wait(-1)
	var batch *client.UploadedBatch
	err := l.insist(ctx, func(c *client.Client) (err error) {
		batch, err = c.UploadBatch(ctx, u)
		return err
	})
	if err != nil {
		l.fail("uploading %s: %v", u.IdempotencyKey, err)
		return
	}
	if got := batch.Rows; got.Read != rows || got.Accepted+got.Replayed != rows {
		l.fail("%s has %d rows, and the answer was %+v", u.IdempotencyKey, rows, got)
	}
	l.mu.Lock()
	l.batches = append(l.batches, batch.ID)
	l.mu.Unlock()
	if !slices.Contains(changes, "cancel") {
		changes = append(changes, "release")
	}
	for _, change := range changes {
		sleep(ctx, pauses)
		err := l.insist(ctx, func(c *client.Client) (err error) {
			switch change {
			case "hold":
				_, err = c.HoldBatch(ctx, batch.ID)
			case "cancel":
				_, err = c.CancelBatch(ctx, batch.ID)
			default:
				_, err = c.ReleaseBatch(ctx, batch.ID)
			}
			return err
		})
		if err != nil {
			l.fail("batch %s, %s: %v", u.IdempotencyKey, change, err)
			return
		}
		if change == "cancel" {
			return
		}
	}
}

// readBatches learns which orders the batches became.
func (l *load) readBatches(ctx context.Context) error {
	for _, id := range l.batches {
		err := l.insist(ctx, func(c *client.Client) error {
			var list []*placed
			for row, err := range c.BatchResults(ctx, id, "") {
				if err != nil {
					return err
				}
				if row.Order == "" {
					return fmt.Errorf("line %d of batch %s: %s", row.Line, id, row.Outcome)
				}
				list = append(list, &placed{order: &client.NewOrder{IssuerRequestID: row.IssuerRequestID}, batch: id, id: row.Order})
			}
			l.orders = append(l.orders, list...)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
