# Writes reference.csv (name, value), against which the tests check the evaluator. See make_cases.py.
suppressMessages({library(pROC); library(rms)})
d <- read.csv("cases.csv")
out <- list()
keep <- function(name, value) out[[name]] <<- as.numeric(value)
rocs <- list()
for (m in c("a", "b")) {
  r <- roc(d$target, d[[m]], quiet = TRUE, direction = "<", levels = c(0, 1))
  rocs[[m]] <- r
  keep(paste0(m, ".auc"), auc(r))
  keep(paste0(m, ".variance"), var(r, method = "delong"))
  ci <- ci.auc(r, method = "delong")
  keep(paste0(m, ".plain_low"), ci[1]); keep(paste0(m, ".plain_high"), ci[3])
  se <- sqrt(var(r, method = "delong")); A <- as.numeric(auc(r)); half <- qnorm(.975) * se / (A * (1 - A))
  keep(paste0(m, ".logit_low"), plogis(qlogis(A) - half)); keep(paste0(m, ".logit_high"), plogis(qlogis(A) + half))
  keep(paste0(m, ".partial"), auc(roc(d$target, d[[m]], quiet = TRUE, direction = "<", levels = c(0, 1)),
                                  partial.auc = c(1, .8), partial.auc.focus = "specificity", partial.auc.correct = TRUE) )
  v <- val.prob(d[[m]], d$target, pl = FALSE)
  keep(paste0(m, ".intercept_with_slope"), v["Intercept"]); keep(paste0(m, ".slope"), v["Slope"])
  keep(paste0(m, ".brier"), v["Brier"]); keep(paste0(m, ".emax"), v["Emax"]); keep(paste0(m, ".e90"), v["E90"]); keep(paste0(m, ".eavg"), v["Eavg"])
  g <- glm(target ~ offset(qlogis(d[[m]])), family = binomial, data = d)
  keep(paste0(m, ".intercept"), coef(g)[1])
  s <- glm(target ~ qlogis(d[[m]]), family = binomial, data = d)
  keep(paste0(m, ".slope_glm"), coef(s)[2])
}
p <- roc.test(rocs$a, rocs$b, method = "delong", paired = TRUE)
keep("paired.z", p$statistic); keep("paired.p", p$p.value)
keep("paired.covariance", cov(rocs$a, rocs$b, method = "delong"))
w <- prop.test(37, 50, correct = FALSE)$conf.int
keep("wilson.low", w[1]); keep("wilson.high", w[2])
keep("holm.1", p.adjust(c(.01, .04, .03), "holm")[1]); keep("holm.2", p.adjust(c(.01, .04, .03), "holm")[2]); keep("holm.3", p.adjust(c(.01, .04, .03), "holm")[3])
write.csv(data.frame(name = names(out), value = sprintf("%.15g", unlist(out))), "reference.csv", row.names = FALSE, quote = FALSE)
