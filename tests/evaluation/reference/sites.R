# Writes sites.csv (name, value): random effects over sites by metafor 3.8 (R 4.2). cvAUC and pmvalsampsize are not among Debian's packages: the
# first is followed by hand in test_reference.py, the second by its authors' Python package in validation_sizes.py.
suppressMessages(library(metafor))
cases <- list(
  apart = list(yi = c(1.20, 1.65, 0.90, 2.10, 1.40, 1.75), vi = c(0.040, 0.055, 0.030, 0.090, 0.025, 0.060)),
  alike = list(yi = c(0.05, 0.02, 0.08, 0.04), vi = c(0.002, 0.003, 0.002, 0.004)),
  two   = list(yi = c(0.5, 1.5), vi = c(0.02, 0.03))
)
out <- list()
for (name in names(cases)) {
  fit <- rma(yi = cases[[name]]$yi, vi = cases[[name]]$vi, method = "PM", test = "knha")
  new <- predict(fit)
  values <- c(mean = fit$beta[1], error = fit$se, between = fit$tau2, low = fit$ci.lb, high = fit$ci.ub, new_low = new$pi.lb, new_high = new$pi.ub, p = fit$pval)
  for (key in names(values)) out[[paste0(name, ".", key)]] <- values[[key]]
}
write.csv(data.frame(name = names(out), value = sprintf("%.15g", unlist(out))), "sites.csv", row.names = FALSE, quote = FALSE)
