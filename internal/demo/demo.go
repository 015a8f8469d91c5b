// Package demo plays core banking: it places three orders over REST, follows
// their lives, and tells whether they arrived.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/d1client"
)

// Target is the service that is shown.
type Target struct {
	APIURL        string
	IssuerID      string
	Token         string
	EncryptionKey []byte // D1's public key as a JWK
}

// testPANs are the networks' published test numbers.
var testPANs = []string{"4111111111111111", "5555555555554444", "4012888888881881"}

// placed is one order of the demonstration.
type placed struct {
	name   string
	target string // the status at which it has arrived
	order  view
	seen   int // timeline entries already told
}

// view is what the demonstration reads of an order.
type view struct {
	ID              string `json:"id"`
	IssuerRequestID string `json:"issuerRequestId"`
	Status          string `json:"status"`
	Version         int    `json:"version"`
	OperationID     string `json:"operationId"`
	Shipments       []struct {
		Carrier        string `json:"carrier"`
		TrackingNumber string `json:"trackingNumber"`
	} `json:"shipments"`
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
	run := strings.ToLower(uuid.NewString()[:8]) // other cards each time
	var list []*placed
	for i, o := range demoOrders(run) {
		o.body["encryptedData"], err = encrypter.Encrypt(time.Now(), fmt.Appendf(nil,
			`{"pan":%q,"exp":"3012","name":"ADA EXAMPLE"}`, testPANs[i]))
		if err != nil {
			return fmt.Errorf("encrypting card data: %w", err)
		}
		p := &placed{name: o.name, target: o.target}
		if err := t.call(ctx, http.MethodPost, "/orders", o.body, &p.order); err != nil {
			return fmt.Errorf("placing the %s order: %w", o.name, err)
		}
		say(out, p, time.Now(), "POST /orders answered 201: "+p.order.ID)
		list = append(list, p)
	}
	err = t.follow(ctx, list, out)
	table(out, list)
	return err
}

func (t Target) follow(ctx context.Context, list []*placed, out io.Writer) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		arrived := 0
		for _, p := range list {
			if err := t.tell(ctx, p, out); err != nil {
				return err
			}
			if p.order.Status == p.target {
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
func (t Target) tell(ctx context.Context, p *placed, out io.Writer) error {
	if err := t.call(ctx, http.MethodGet, "/orders/"+p.order.ID, nil, &p.order); err != nil {
		return err
	}
	var timeline struct {
		Data []struct {
			At    time.Time `json:"at"`
			Event *struct {
				Status         string   `json:"status"`
				PreviousStatus string   `json:"previousStatus"`
				Cause          string   `json:"cause"`
				Attention      []string `json:"attention"`
			} `json:"event"`
			Attempt *struct {
				Kind        string `json:"kind"`
				Outcome     string `json:"outcome"`
				HTTPStatus  int    `json:"httpStatus"`
				OperationID string `json:"operationId"`
				DurationMS  int    `json:"durationMs"`
			} `json:"attempt"`
			Notification *struct {
				Outcome string `json:"outcome"`
			} `json:"notification"`
		} `json:"data"`
	}
	if err := t.call(ctx, http.MethodGet, "/orders/"+p.order.ID+"/timeline", nil, &timeline); err != nil {
		return err
	}
	for _, e := range timeline.Data[min(p.seen, len(timeline.Data)):] {
		switch {
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
	p.seen = max(p.seen, len(timeline.Data))
	return nil
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
		if i := slices.IndexFunc(p.order.Shipments, func(s struct {
			Carrier        string `json:"carrier"`
			TrackingNumber string `json:"trackingNumber"`
		}) bool {
			return s.TrackingNumber != ""
		}); i >= 0 {
			tracking = p.order.Shipments[i].Carrier + " " + p.order.Shipments[i].TrackingNumber
		}
		arrived := "no"
		if p.order.Status == p.target {
			arrived = "yes"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", p.name, p.order.Status, arrived, p.order.Version, p.order.OperationID, tracking)
	}
	_ = w.Flush()
}

// call makes one request of the API and decodes its answer.
func (t Target) call(ctx context.Context, method, path string, body, answer any) error {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("writing a request: %w", err)
		}
		content = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, t.APIURL+"/v1/issuers/"+url.PathEscape(t.IssuerID)+path, content)
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+t.Token)
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return ErrNotArrived
		}
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 300 {
		problem, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		return fmt.Errorf("%s %s answered %d: %s", method, path, res.StatusCode, problem)
	}
	if err := json.NewDecoder(res.Body).Decode(answer); err != nil {
		return fmt.Errorf("reading the answer to %s %s: %w", method, path, err)
	}
	return nil
}

type object map[string]any

type demoOrder struct {
	name, target string
	body         object
}

// demoOrders are three orders, one for each way a card can go.
func demoOrders(run string) []demoOrder {
	common := func(n string, more object) object {
		o := object{
			"cardId": "card-" + run + "-" + n, "consumerId": "consumer-" + run + "-" + n, "cardProductId": "gold-debit",
			"issuerRequestId":    "demo-" + run + "-" + n,
			"paymentApplication": object{"config": "visa-debit", "odaKeyIndex": "01", "derivationKeyIndex": "01"},
			"metadata":           object{"campaign": "demo"},
		}
		for name, value := range more {
			o[name] = value
		}
		return o
	}
	return []demoOrder{
		{"THALES individual", "SHIPPED", common("1", object{
			"distributionChannel": "THALES",
			"services":            object{"issuance": "CREATION", "delivery": "POST", "cardCarrier": "WELCOME"},
			"shipment": object{"type": "INDIVIDUAL", "deliveryAddress": object{
				"firstName": "Ada", "lastName": "Example", "line1": "1 Rue de la Paix", "zipCode": "75002", "city": "Paris", "countryCode": "FR",
			}},
		})},
		{"THALES bulk", "SHIPPED", common("2", object{
			"distributionChannel": "THALES",
			"services":            object{"issuance": "RENEWAL", "delivery": "COURIER"},
			"shipment": object{"type": "BULK", "groupId": "branch-07", "orderId": "box-1", "deliveryAddress": object{
				"companyName": "Example Bank", "line1": "7 High Street", "zipCode": "N1 1AA", "city": "London", "countryCode": "GB",
			}},
		})},
		{"INSTANT", "PRODUCED", common("3", object{
			"distributionChannel": "INSTANT",
			"services":            object{"issuance": "REPLACEMENT"},
			"persoStation":        "branch-07-printer-2",
		})},
	}
}
