package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"cardorder/client"
)

func ExampleClient_PlaceOrder() {
	c, err := client.New(client.Config{
		BaseURL:  "https://cards.bank.example",
		IssuerID: "ISSUER0001",
		Token:    client.NewToken(os.Getenv("CARDORDER_TOKEN")),
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	// The id is stored on this side before the call. After a crash or a timeout,
	// the same call with the same id orders nothing twice.
	placed, err := c.PlaceOrder(ctx, &client.NewOrder{
		CardID:              "card-4711",
		IssuerRequestID:     "request-4711",
		ConsumerID:          "consumer-9",
		CardProductID:       "gold-debit",
		DistributionChannel: client.ChannelThales,
		Services:            client.Services{Issuance: client.IssuanceCreation, Delivery: "POST"},
		PaymentApplication:  &client.PaymentApplication{Config: "visa-debit", ODAKeyIndex: "01", DerivationKeyIndex: "01"},
		Shipment: &client.Shipment{DeliveryAddress: &client.Address{
			FirstName: "Ada", LastName: "Example", Line1: "1 Rue de la Paix", ZipCode: "75002", City: "Paris", CountryCode: "FR",
		}},
		EncryptedData: "<compact JWE for D1>",
	}, "")

	if problem, ok := errors.AsType[*client.Problem](err); ok {
		switch problem.Type {
		case client.ProblemDuplicateOrder:
			fmt.Println("the card is ordered already:", problem.ConflictingOrder)
		case client.ProblemInvalidRequest:
			for _, fault := range problem.Errors {
				fmt.Println(fault.Pointer, fault.Code)
			}
		}
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(placed.ID, placed.Status, placed.Replayed)
}

func ExampleClient_UploadBatch() {
	var c *client.Client // from client.New

	ctx := context.Background()
	batch, err := c.UploadBatch(ctx, client.Upload{
		IdempotencyKey: "renewals-2026-03.ndjson",
		Open:           func() (io.ReadCloser, error) { return os.Open("renewals-2026-03.ndjson") },
		Gzip:           true,
	})
	if err != nil {
		log.Fatal(err) // calling again goes on
	}
	for result, err := range c.BatchResults(ctx, batch.ID, client.OutcomeRefused) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(result.Line, result.Problem, result.Errors)
	}
}

func ExampleClient_AllOrders() {
	var c *client.Client // from client.New

	for order, err := range c.AllOrders(context.Background(), client.OrderFilter{Attention: true}) {
		if err != nil {
			log.Fatal(err)
		}
		for _, a := range order.Attention {
			fmt.Println(order.ID, a.Code, a.Next)
		}
	}
}
