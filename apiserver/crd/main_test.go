package crd_test

import (
	"testing"

	"github.com/keelson/keelson/libs/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
