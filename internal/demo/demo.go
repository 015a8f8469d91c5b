// Package demo plays core banking: it places three orders over REST, redirects one
// when D1 has it, follows their lives, and tells whether they arrived.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"cardorder/client"
	"cardorder/internal/d1client"
)

// Target is the service that is shown.
type Target struct {
	APIURL        string
	IssuerID      string
	Token         string
	EncryptionKey []byte // D1's public key as a JWK
	// ToTheDoor follows cards until they are delivered: for a bureau whose carriers report
	// it, in codes that the service knows.
	ToTheDoor bool
}

// testPANs are the networks' published test numbers.
var testPANs = []string{"4111111111111111", "5555555555554444", "4012888888881881"}

// placed is one order of the demonstration.
type placed struct {
	name   string
	target client.Status // the status at which it has arrived
	order  *client.Order
	seen   int             // timeline entries already told
	moveTo *client.Address // where it is redirected to once D1 has it; nil when it was
}

// arrived tells whether the order is where it should come to, or beyond.
func (p *placed) arrived() bool {
	return p.order.Status == p.target || p.target == client.StatusShipped && p.order.Status == client.StatusDelivered
}

// ErrNotArrived is returned when an order did not get where it should.
var ErrNotArrived = errors.New("not every order arrived")

// Run places the orders and writes what happens to them to out. It returns when
// all have arrived, or ErrNotArrived when ctx ends before.
func Run(ctx context.Context, t Target, out io.Writer) error {
	key, err := d1client.ParsePublicJWK(t.EncryptionKey)
	if err != nil {
		return fmt.Errorf("D1's public key: %w", err)
	}
	encrypter, err := d1client.NewEncrypter(key)
	if err != nil {
		return fmt.Errorf("D1's public key: %w", err)
	}
	bank, err := client.New(client.Config{BaseURL: t.APIURL, IssuerID: t.IssuerID, Token: client.NewToken(t.Token)})
	if err != nil {
		return err
	}
	run := strings.ToLower(uuid.NewString()[:8]) // other cards each time
	var list []*placed
	for i, o := range demoOrders(run) {
		o.order.EncryptedData, err = encrypter.Encrypt(time.Now(), fmt.Appendf(nil,
			`{"pan":%q,"exp":"3012","name":"ADA EXAMPLE"}`, testPANs[i]))
		if err != nil {
			return fmt.Errorf("encrypting card data: %w", err)
		}
		answer, err := bank.PlaceOrder(ctx, &o.order, "")
		if err != nil {
			return fmt.Errorf("the %s order: %w", o.name, orNotArrived(ctx, err))
		}
		if t.ToTheDoor && o.target == client.StatusShipped {
			o.target = client.StatusDelivered
		}
		p := &placed{name: o.name, target: o.target, order: &answer.Order, moveTo: o.moveTo}
		say(out, p, time.Now(), "POST /orders answered 201: "+p.order.ID)
		list = append(list, p)
	}
	err = follow(ctx, bank, list, out)
	table(out, list)
	return err
}

// orNotArrived tells an error that only the end of ctx made.
func orNotArrived(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ErrNotArrived
	}
	return err
}

func follow(ctx context.Context, bank *client.Client, list []*placed, out io.Writer) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		arrived := 0
		for _, p := range list {
			err := tell(ctx, bank, p, out)
			if err == nil {
				err = move(ctx, bank, p, out)
			}
			if err != nil {
				return orNotArrived(ctx, err)
			}
			if p.arrived() {
				arrived++
			}
		}
		if arrived == len(list) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ErrNotArrived
		}
	}
}

// tell writes what is new in an order's timeline.
func tell(ctx context.Context, bank *client.Client, p *placed, out io.Writer) error {
	o, err := bank.Order(ctx, p.order.ID)
	if err != nil {
		return err
	}
	p.order = o
	timeline, err := bank.Timeline(ctx, o.ID)
	if err != nil {
		return err
	}
	for _, e := range timeline[min(p.seen, len(timeline)):] {
		switch {
		case e.Event != nil && e.Event.Type == "change-changed":
			say(out, p, e.At, fmt.Sprintf("change %s (%s)", e.Event.Detail, e.Event.Cause))
		case e.Event != nil && e.Event.PreviousStatus != e.Event.Status:
			say(out, p, e.At, fmt.Sprintf("%-15s (%s)", e.Event.Status, e.Event.Cause))
		case e.Event != nil && len(e.Event.Attention) > 0:
			say(out, p, e.At, "attention: "+strings.Join(e.Event.Attention, ", "))
		case e.Attempt != nil:
			say(out, p, e.At, fmt.Sprintf("D1 %s: %s, HTTP %d, operation %s, %d ms",
				e.Attempt.Kind, e.Attempt.Outcome, e.Attempt.HTTPStatus, e.Attempt.OperationID, e.Attempt.DurationMS))
		case e.Notification != nil:
			say(out, p, e.At, "notification from D1, "+e.Notification.Outcome)
		}
	}
	p.seen = max(p.seen, len(timeline))
	return nil
}

// move redirects an order that is under way. One that is beyond it goes where it goes.
func move(ctx context.Context, bank *client.Client, p *placed, out io.Writer) error {
	if p.moveTo == nil || p.order.OperationID == "" {
		return nil
	}
	change, err := bank.ChangeOrder(ctx, p.order.ID, client.NewChange{Type: client.ChangeRedirect, NewDeliveryAddress: p.moveTo})
	p.moveTo = nil
	if problem, is := errors.AsType[*client.Problem](err); is {
		say(out, p, time.Now(), "POST /orders/{id}/changes refused: "+problem.Title)
		return nil
	}
	if err == nil {
		say(out, p, time.Now(), fmt.Sprintf("POST /orders/{id}/changes answered 201: %s %s", change.Type, change.State))
	}
	return err
}

func say(out io.Writer, p *placed, at time.Time, text string) {
	_, _ = fmt.Fprintf(out, "%s  %-18s %s\n", at.Local().Format("15:04:05.000"), p.name, text)
}

func table(out io.Writer, list []*placed) {
	_, _ = fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ORDER\tSTATUS\tARRIVED\tVERSION\tD1 OPERATION\tTRACKING")
	for _, p := range list {
		tracking := "-"
		if i := slices.IndexFunc(p.order.Shipments, func(s client.Parcel) bool { return s.TrackingNumber != "" }); i >= 0 {
			tracking = p.order.Shipments[i].Carrier + " " + p.order.Shipments[i].TrackingNumber
		}
		arrived := "no"
		if p.arrived() {
			arrived = "yes"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", p.name, p.order.Status, arrived, p.order.Version, p.order.OperationID, tracking)
	}
	_ = w.Flush()
}

type demoOrder struct {
	name   string
	target client.Status
	order  client.NewOrder
	moveTo *client.Address
}

// demoOrders are three orders, one for each way a card can go.
func demoOrders(run string) []demoOrder {
	list := []demoOrder{
		{name: "THALES individual", target: client.StatusShipped, order: client.NewOrder{
			DistributionChannel: client.ChannelThales,
			Services:            client.Services{Issuance: client.IssuanceCreation, Delivery: "POST", CardCarrier: "WELCOME"},
			Shipment: &client.Shipment{Type: client.ShipmentIndividual, DeliveryAddress: &client.Address{
				FirstName: "Ada", LastName: "Example", Line1: "1 Rue de la Paix", ZipCode: "75002", City: "Paris", CountryCode: "FR",
			}},
		}, moveTo: &client.Address{
			FirstName: "Ada", LastName: "Example", Line1: "2 Quai des Celestins", ZipCode: "69002", City: "Lyon", CountryCode: "FR",
		}},
		{name: "THALES bulk", target: client.StatusShipped, order: client.NewOrder{
			DistributionChannel: client.ChannelThales,
			Services:            client.Services{Issuance: client.IssuanceRenewal, Delivery: "COURIER"},
			Shipment: &client.Shipment{Type: client.ShipmentBulk, GroupID: "branch-07", OrderID: "box-1", DeliveryAddress: &client.Address{
				CompanyName: "Example Bank", Line1: "7 High Street", ZipCode: "N1 1AA", City: "London", CountryCode: "GB",
			}},
		}},
		{name: "INSTANT", target: client.StatusProduced, order: client.NewOrder{
			DistributionChannel: client.ChannelInstant,
			Services:            client.Services{Issuance: client.IssuanceReplacement},
			PersoStation:        "branch-07-printer-2",
		}},
	}
	for i := range list {
		o, id := &list[i].order, fmt.Sprintf("%s-%d", run, i+1)
		o.CardID, o.ConsumerID, o.CardProductID, o.IssuerRequestID = "card-"+id, "consumer-"+id, "gold-debit", "demo-"+id
		o.PaymentApplication = &client.PaymentApplication{Config: "visa-debit", ODAKeyIndex: "01", DerivationKeyIndex: "01"}
		o.Metadata = map[string]string{"campaign": "demo"}
	}
	return list
}
