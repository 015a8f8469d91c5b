package app_test

import (
	"testing"

	"cardorder/internal/d1sim"
)

// The main path: three orders, one for each way a card can go.
func TestOrdersArrive(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	individual := b.place(b.thales("individual"))
	bulk := b.place(b.thales("bulk").with(body{
		"shipment": body{"type": "BULK", "groupId": "branch-7", "orderId": "box-1", "deliveryAddress": body{
			"companyName": "Bank", "line1": "2 High Street", "zipCode": "N1 1AA", "city": "London", "countryCode": "GB",
		}},
	}))
	instant := b.place(b.thales("instant").with(body{
		"distributionChannel": "INSTANT", "persoStation": "branch-7-printer", "shipment": nil,
		"services": body{"issuance": "CREATION"},
	}))
	b.wait(d1sim.Condition{Cards: 3})
	b.await(individual, "SHIPPED")
	b.await(bulk, "SHIPPED")
	b.await(instant, "PRODUCED")
	for _, id := range []string{individual, bulk, instant} {
		b.noGaps(id)
	}
}
